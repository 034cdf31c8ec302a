//! `/metrics`: the process's own instruments, then gauges over the whole bus and fleet.

use std::fmt::Write;

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use cogo_bus_core::StatusTotal;
use cogo_registry_core::Agent;
use cogo_service_runtime::ApiError;
use cogo_telemetry::{Exposition, label, name};

use crate::{
    Console,
    snapshot::{agents, by_state, database},
};

/// Whether the figures below could be read.
const REACHABLE: &str = "cogo_bus_reachable";

pub(crate) async fn metrics(State(console): State<Console>) -> Response {
    let mut text = console.exposition.prometheus_text();
    // a scrape without a database still shows the process, and says what is missing
    match bus_and_fleet(&console).await {
        Ok(figures) => text.push_str(&figures),
        Err(_logged) => gauge(&mut text, REACHABLE, "Whether the bus could be read", [(String::new(), 0.0)]),
    }
    ([(CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response()
}

async fn bus_and_fleet(console: &Console) -> Result<String, ApiError> {
    let totals = cogo_bus_core::totals(&console.pool).await.map_err(database)?;
    let agents = agents(&console.pool).await?;
    Ok(exposition(&totals, &agents))
}

fn exposition(totals: &[StatusTotal], agents: &[Agent]) -> String {
    let mut text = String::new();
    gauge(&mut text, REACHABLE, "Whether the bus could be read", [(String::new(), 1.0)]);
    let messages = totals.iter().map(|total| {
        let labels = format!(
            "{{{}=\"{}\",{}=\"{}\",{}=\"{}\"}}",
            label::STATUS,
            escaped(&total.status),
            label::SERVICE,
            escaped(&total.service),
            label::ROLE,
            escaped(&total.role)
        );
        (labels, to_f64(total.messages))
    });
    let help = "Messages by status; done and cancelled as far as they are among the newest 100000 ended";
    gauge(&mut text, name::BUS_MESSAGES, help, messages);
    let ages = totals.iter().filter_map(|total| {
        let labels = format!(
            "{{{}=\"{}\",{}=\"{}\"}}",
            label::SERVICE,
            escaped(&total.service),
            label::ROLE,
            escaped(&total.role)
        );
        total.oldest_age_s.map(|age| (labels, age))
    });
    gauge(&mut text, name::BUS_OLDEST_QUEUED_AGE, "Age of the oldest claimable message", ages);
    let states = by_state(agents).into_iter().map(|(state, count)| {
        (format!("{{{}=\"{state}\"}}", label::STATE), u32::try_from(count).map_or(f64::MAX, f64::from))
    });
    gauge(&mut text, name::AGENTS, "Living agents by state", states);
    text
}

fn gauge(text: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let mut written = format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (labels, value) in samples {
        writeln!(written, "{name}{labels} {value}").expect("writing to a String does not fail");
    }
    text.push_str(&written);
}

/// The contract of the bus allows no such characters; a value that came around it must still not break the format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Exact: counts end far below 2^31.
fn to_f64(count: i64) -> f64 {
    i32::try_from(count).map_or(f64::MAX, f64::from)
}
