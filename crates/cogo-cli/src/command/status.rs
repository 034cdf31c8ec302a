//! `cogo status`: the fleet, its database and its queues at a glance.

use std::time::Duration;

use clap::Args;
use cogo_bus_core::{StatusCounts, summary};
use cogo_db::SchemaState;
use cogo_pg_local::Cluster;
use serde::Serialize;

use crate::{
    command::up_table::dashboard,
    context::{Context, open},
    failure::Failure,
    fleet::{DatabaseReference, FleetState, Phase, Readiness, probe_client, readiness},
    format,
    output::{Look, Output, table},
    proc_files::memory,
};

/// The window of the queue figures; only the counts are shown.
const WINDOW: Duration = Duration::from_secs(60);

/// Show every process, the database and the queues; exit 0 only if all is ready.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo status\n  cogo status --json")]
pub(crate) struct Status {}

#[derive(Serialize)]
struct Report {
    up: bool,
    ready: bool,
    pid: Option<u32>,
    phase: Option<Phase>,
    dashboard: Option<String>,
    processes: Vec<ProcessReport>,
    database: DatabaseReport,
}

#[derive(Serialize)]
struct ProcessReport {
    name: String,
    state: Readiness,
    pid: Option<u32>,
    port: u16,
    url: String,
    restarts: u32,
    rss_bytes: Option<u64>,
    last_end: Option<String>,
}

#[derive(Default, Serialize)]
struct DatabaseReport {
    reachable: bool,
    embedded: bool,
    pid: Option<i32>,
    port: Option<u16>,
    version: Option<String>,
    schema: Option<i64>,
    schema_fits: bool,
    messages: Option<StatusCounts>,
    error: Option<String>,
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let state = context.home.read_state()?;
        let client = probe_client()?;
        let processes = match &state {
            Some(state) => processes(state, &readiness(&client, state).await),
            None => Vec::new(),
        };
        let database = database(context, state.as_ref()).await;
        let up = state.as_ref().and_then(FleetState::living_up).map(|identity| identity.pid);
        let all_ready = processes.iter().all(|process| process.state.is_as_meant());
        let report = Report {
            up: up.is_some(),
            ready: up.is_some() && all_ready && database.reachable && database.schema_fits,
            pid: up,
            phase: state.as_ref().map(|state| state.phase),
            dashboard: state.as_ref().and_then(dashboard),
            processes,
            database,
        };
        context.output.either(&report, || readable(&context.output, &report))?;
        match (&report, state) {
            (Report { ready: true, .. }, _) => Ok(()),
            (Report { up: true, .. }, _) => Err(Failure::unavailable("The fleet is up but not ready")
                .hint(format!("see {}", context.home.path().join("logs").display()))),
            (_, Some(_)) => Err(Failure::unavailable("The `cogo up` of this fleet is gone")
                .hint("`cogo up` cleans up and starts it again, `cogo down` only cleans up")),
            (_, None) => Err(Failure::unavailable(format!("No fleet is up in {}", context.home.path().display()))
                .hint("`cogo up` starts it")),
        }
    }
}

fn processes(state: &FleetState, found: &[Readiness]) -> Vec<ProcessReport> {
    let report = |(process, readiness): (&crate::fleet::ProcessState, &Readiness)| {
        let pid = process.living().map(|identity| identity.pid);
        ProcessReport {
            name: process.name.clone(),
            state: *readiness,
            pid,
            port: process.port,
            url: process.url(),
            restarts: process.restarts,
            rss_bytes: pid.and_then(memory).map(|memory| memory.rss),
            last_end: process.last_end.clone(),
        }
    };
    state.processes.iter().zip(found).map(report).collect()
}

/// A database that does not answer is part of the picture, not the end of it.
async fn database(context: &Context, state: Option<&FleetState>) -> DatabaseReport {
    let embedded = context.given_database_url.is_none()
        && !matches!(state.map(|state| &state.database), Some(DatabaseReference::External { .. }));
    let cluster = if embedded { Cluster::attach(&context.home.postgres()).ok().flatten() } else { None };
    let mut report = DatabaseReport {
        embedded,
        pid: cluster.as_ref().and_then(Cluster::postmaster_pid),
        port: cluster.as_ref().map(Cluster::port),
        ..DatabaseReport::default()
    };
    if let Err(failure) = look(context, &mut report).await {
        report.error = Some(failure.text());
    }
    report
}

async fn look(context: &Context, report: &mut DatabaseReport) -> Result<(), Failure> {
    let pool = open(&context.database_url()?).await?;
    report.reachable = true;
    report.version = Some(sqlx::query_scalar("show server_version").fetch_one(&pool).await?);
    let (schema, fits) = match cogo_db::schema_state(&pool).await? {
        SchemaState::Fits(version) => (version, true),
        SchemaState::Behind { have, .. } => (have, false),
    };
    report.schema = Some(schema);
    report.schema_fits = fits;
    if fits {
        report.messages = Some(summary(&pool, WINDOW).await?.by_status);
    }
    Ok(())
}

fn readable(output: &Output, report: &Report) -> String {
    let mut blocks = Vec::new();
    if !report.processes.is_empty() {
        let rows = report.processes.iter().map(|process| {
            [
                process.name.clone(),
                process.state.as_str().to_owned(),
                process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                process.restarts.to_string(),
                process
                    .rss_bytes
                    .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1} MiB", format::mebibytes(bytes))),
                process.url.clone(),
            ]
        });
        let text = table(["process", "state", ">pid", ">restarts", ">memory", "url"], rows);
        let lines = text.lines().map(|line| match line {
            down if down.contains(" down ") => output.paint.paint(Look::Bad, down),
            waiting
                if waiting.contains(" waiting ")
                    || waiting.contains(" drained ")
                    || waiting.contains(" suspended ") =>
            {
                output.paint.paint(Look::Warning, waiting)
            }
            other => other.to_owned(),
        });
        blocks.push(lines.collect::<Vec<_>>().join("\n"));
    }
    blocks.push(database_lines(&report.database));
    if let Some(url) = report.dashboard.as_ref().filter(|_| report.up) {
        blocks.push(format!("dashboard {url}"));
    }
    blocks.join("\n\n")
}

fn database_lines(database: &DatabaseReport) -> String {
    let kind = if database.embedded { "embedded" } else { "external" };
    // of the embedded one it is said below that nothing is up
    let error = database.error.as_deref().filter(|_| !database.embedded || database.reachable);
    let indent = format!("\n{:<10}", "");
    let error = error.map_or_else(String::new, |error| {
        format!("{indent}{}", error.strip_prefix("error: ").unwrap_or(error).replace('\n', &indent))
    });
    if !database.reachable {
        return format!("postgres  {kind}, not reachable{error}");
    }
    let version = database.version.as_deref().unwrap_or("unknown");
    let place = database.port.map_or_else(String::new, |port| format!(", port {port}"));
    let pid = database.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let schema = match (database.schema, database.schema_fits) {
        (Some(version), true) => version.to_string(),
        (Some(version), false) => format!("{version}, too old: run `cogo migrate`"),
        (None, _) => "could not be read".to_owned(),
    };
    let mut lines = vec![format!("postgres  {kind} {version}{place}{pid}"), format!("schema    {schema}{error}")];
    if let Some(counts) = database.messages {
        lines.push(format!(
            "messages  {} queued, {} claimed, {} done, {} failed, {} cancelled",
            counts.queued, counts.claimed, counts.done, counts.failed, counts.cancelled
        ));
    }
    lines.join("\n")
}
