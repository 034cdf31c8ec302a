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
    agents::Figures,
    snapshot::{agents, by_state, database},
};

/// Whether the figures below could be read.
const REACHABLE: &str = "cogo_bus_reachable";

pub(crate) async fn metrics(State(console): State<Console>) -> Response {
    let mut text = console.exposition.prometheus_text();
    // a scrape without a database still shows the process, and says what is missing
    match bus_and_fleet(&console, &text).await {
        Ok(figures) => text.push_str(&figures),
        Err(_logged) => gauge(&mut text, REACHABLE, "Whether the bus could be read", [(String::new(), 0.0)]),
    }
    ([(CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response()
}

async fn bus_and_fleet(console: &Console, own: &str) -> Result<String, ApiError> {
    let totals = cogo_bus_core::totals(&console.pool).await.map_err(database)?;
    let agents = agents(&console.pool).await?;
    let figures = match &console.agents {
        Some(asked) => asked.figures(&agents, own).await,
        None => vec![None; agents.len()],
    };
    let mut text = exposition(&totals, &agents);
    per_agent(&mut text, &totals, &agents, &figures);
    let tree =
        console.tree.counts(&console.pool).await.map_err(database)?.into_iter().map(|((event, process), events)| {
            let labels =
                format!("{{{}=\"{}\",{}=\"{}\"}}", label::EVENT, escaped(&event), label::PROCESS, escaped(&process));
            (labels, to_f64(events))
        });
    counter(&mut text, name::TREE_EVENTS, "What happened in the supervision tree, as its audit tells", tree);
    Ok(text)
}

/// Each agent by itself: what its beats tell, what waits for it, and what it tells of itself.
fn per_agent(text: &mut String, totals: &[StatusTotal], agents: &[Agent], figures: &[Option<Figures>]) {
    let labels = |agent: &Agent| format!("{{agent=\"{}\"}}", escaped(&agent.id.instance()));
    let of_agents = |value: fn(&Agent) -> Option<f64>| {
        agents.iter().filter_map(move |agent| Some((labels(agent), value(agent)?))).collect::<Vec<_>>()
    };
    gauge(
        text,
        name::AGENT_READY,
        "Whether it said that it can work",
        of_agents(|agent| Some(f64::from(u8::from(agent.ready)))),
    );
    gauge(
        text,
        name::AGENT_IN_FLIGHT,
        "Messages that it works on",
        of_agents(|agent| Some(f64::from(agent.in_flight))),
    );
    gauge(
        text,
        name::AGENT_CPU,
        "Cores that it used until its last beat",
        of_agents(|agent| agent.cpu_cores.map(f64::from)),
    );
    let memory = of_agents(|agent| agent.memory_bytes.map(large));
    gauge(text, name::AGENT_MEMORY, "Resident memory at its last beat", memory);
    let depths = agents.iter().flat_map(|agent| agent.capabilities.iter().map(move |can| (agent, can)));
    let depths = depths.filter_map(|(agent, can)| {
        let route = can.strip_prefix("route:")?;
        let (service, role) =
            route.split_once('/').map(|(service, rest)| (service, rest.split('/').next().unwrap_or(rest)))?;
        let queued =
            totals.iter().filter(|total| total.status == "queued" && total.service == service && total.role == role);
        let depth: i64 = queued.map(|total| total.messages).sum();
        let labels = format!("{{agent=\"{}\",route=\"{}\"}}", escaped(&agent.id.instance()), escaped(route));
        Some((labels, to_f64(depth)))
    });
    gauge(
        text,
        name::AGENT_QUEUE_DEPTH,
        "Messages that wait for agents of its service and role, all shards",
        depths.collect::<Vec<_>>(),
    );
    let told = || agents.iter().zip(figures);
    let answers = told().map(|(agent, figures)| (labels(agent), f64::from(u8::from(figures.is_some()))));
    gauge(text, name::AGENT_UP, "Whether it tells its own figures", answers.collect::<Vec<_>>());
    let of_figures = |value: fn(&Figures) -> Option<f64>| {
        told().filter_map(move |(agent, figures)| Some((labels(agent), value(figures.as_ref()?)?))).collect::<Vec<_>>()
    };
    counter(text, name::AGENT_CPU_SECONDS, "Processor time", of_figures(|figures| figures.cpu_seconds));
    counter(text, name::AGENT_MESSAGES, "Messages that it has claimed", of_figures(|figures| figures.messages));
    counter(text, name::AGENT_ATTEMPTS, "Attempts that it has ended", of_figures(|figures| figures.attempts));
    let worked = of_figures(|figures| figures.worked_seconds);
    counter(
        text,
        name::AGENT_WORKED_SECONDS,
        "Time that its attempts took altogether; by their number, its latency",
        worked,
    );
    let help = "Bytes of its network namespace, loopback left out";
    counter(text, name::AGENT_RECEIVED, help, of_figures(|figures| figures.received));
    counter(text, name::AGENT_TRANSMITTED, help, of_figures(|figures| figures.transmitted));
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
    family(text, "gauge", name, help, samples);
}

fn counter(text: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    family(text, "counter", name, help, samples);
}

fn family(text: &mut String, kind: &str, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let mut written = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        writeln!(written, "{name}{labels} {value}").expect("writing to a String does not fail");
    }
    text.push_str(&written);
}

/// The contract of the bus allows no such characters; a value that came around it must still not break the format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Bytes beyond 2^53 need not be exact.
#[expect(clippy::cast_precision_loss, reason = "no machine has that much memory")]
fn large(bytes: i64) -> f64 {
    bytes as f64
}

/// Exact: counts end far below 2^31.
fn to_f64(count: i64) -> f64 {
    i32::try_from(count).map_or(f64::MAX, f64::from)
}
