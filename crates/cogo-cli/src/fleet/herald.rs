//! Tells the rest of the system what happens in the tree: audit rows in the database, spans, figures. Never waited for.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cogo_bus_core::{NewEvent, record_event};
use cogo_db::PoolSettings;
use cogo_supervision::{Event, Exit, Happened};
use cogo_telemetry::SupervisionMetrics;
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{Span, debug, info_span, warn};

/// Events that wait for a database that is away; what comes beyond is counted only.
const BUFFERED: usize = 1_024;
/// Events of one transaction.
const BATCH: usize = 100;
/// Pause before events are written again.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for one answer of the database.
const PATIENCE: Duration = Duration::from_secs(5);
/// Tries once nothing more comes: the fleet has ended and its database may have, too.
const LAST_TRIES: u32 = 2;
/// Events of the tree belong to no tenant.
const NOBODYS: &str = "-";

/// What is told of an event.
#[derive(Debug)]
struct Told {
    kind: &'static str,
    detail: Value,
}

/// Takes events in.
#[derive(Debug)]
pub(crate) struct Herald {
    metrics: SupervisionMetrics,
    rows: mpsc::Sender<Told>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last word on each path.
    stands: HashMap<String, &'static str>,
    /// What ended by itself and does not run again yet.
    down: HashMap<String, Down>,
}

#[derive(Debug)]
struct Down {
    since: Instant,
    /// As long as it is down.
    span: Span,
}

/// Writes events down.
#[derive(Debug)]
pub(crate) struct Telling {
    url: String,
    metrics: SupervisionMetrics,
    rows: mpsc::Receiver<Told>,
}

impl Herald {
    /// A herald for the database at this address, and the task that writes what it takes in. The task ends by itself once
    /// the herald is gone and everything is written.
    pub(crate) fn new(url: &str, metrics: SupervisionMetrics) -> (Self, Telling) {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let telling = Telling { url: url.to_owned(), metrics: metrics.clone(), rows: receiver };
        (Self { metrics, rows: sender, state: Mutex::default() }, telling)
    }

    /// Tells of one event.
    pub(crate) fn tell(&self, event: &Event) {
        let path = event.path.as_str();
        let (name, stands, mut facts) = facts(event);
        let mut state = self.lock();
        let before = state.stands.insert(path.to_owned(), stands);
        if name == "transition" && before == Some(stands) {
            return;
        }
        let mut kinds = vec![name];
        match name {
            "crash" => {
                let span = info_span!("down", otel.name = format!("down {}", process_of(path)), agent = path);
                state.down.entry(path.to_owned()).or_insert_with(|| Down { since: Instant::now(), span });
            }
            "started" => {
                kinds.clear();
                if let Some(Down { since, span }) = state.down.remove(path) {
                    let down = since.elapsed();
                    drop(span);
                    self.metrics.recovered(process_of(path), down);
                    facts.insert("down_ms".to_owned(), json!(u64::try_from(down.as_millis()).unwrap_or(u64::MAX)));
                    kinds.push("recovery");
                }
                kinds.push("transition");
            }
            // told to stop: it does not come back by itself
            "terminate" => drop(state.down.remove(path)),
            _ => {}
        }
        drop(state);
        if before != Some(stands) {
            facts.insert("from".to_owned(), json!(before));
            facts.insert("to".to_owned(), json!(stands));
        }
        facts.insert("agent".to_owned(), json!(if path.is_empty() { "fleet" } else { path }));
        for kind in kinds {
            self.metrics.happened(kind, process_of(path));
            // a span of no length: a mark in the trace of the fleet
            drop(info_span!(
                "supervision",
                otel.name = format!("{kind} {}", process_of(path)),
                agent = path,
                event = kind
            ));
            self.write(kind_of_row(kind), Value::Object(facts.clone()));
        }
    }

    fn write(&self, kind: &'static str, detail: Value) {
        match self.rows.try_send(Told { kind, detail }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => self.metrics.untold(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What kind of event it is, where it leaves the child or group, and what else is known.
fn facts(event: &Event) -> (&'static str, &'static str, Map<String, Value>) {
    let mut facts = Map::new();
    let mut fact = |key: &str, value: Value| drop(facts.insert(key.to_owned(), value));
    let (name, stands) = match &event.happened {
        Happened::Starting => ("transition", "starting"),
        Happened::Spawned { pid } => {
            fact("pid", json!(pid));
            ("spawn", "spawned")
        }
        Happened::Started { restarts } => {
            fact("restarts", json!(restarts));
            ("started", "running")
        }
        Happened::StartFailed { reason } => {
            fact("exit", json!(reason));
            ("crash", "start_failed")
        }
        Happened::Exited { exit } => {
            fact("exit", json!(exit.to_string()));
            match exit {
                Exit::Abnormal(_) | Exit::Final(_) => ("crash", "crashed"),
                Exit::Normal | Exit::Shutdown | Exit::Killed => ("terminate", "terminated"),
            }
        }
        Happened::RestartPlanned { pause } => {
            fact("pause_ms", json!(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)));
            ("transition", "waiting")
        }
        Happened::Stopping => ("transition", "stopping"),
        Happened::Killing => ("transition", "killing"),
        Happened::Leaked => ("transition", "leaked"),
        Happened::GaveUp { child, intensity, period } => {
            fact("child", json!(child));
            fact("intensity", json!(intensity));
            fact("period_s", json!(period.as_secs()));
            ("transition", "gave_up")
        }
        Happened::AutoShutdown { child } => {
            fact("child", json!(child));
            ("transition", "auto_shutdown")
        }
    };
    (name, stands, facts)
}

const fn kind_of_row(name: &str) -> &'static str {
    match name.as_bytes() {
        b"spawn" => "tree_spawn",
        b"terminate" => "tree_terminate",
        b"crash" => "tree_crash",
        b"recovery" => "tree_recovery",
        _ => "tree_transition",
    }
}

/// The process of the list that a path belongs to: its last part that is no slot. Labels must have few values.
fn process_of(path: &str) -> &str {
    let is_slot = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    path.rsplit('/').find(|part| !is_slot(part)).filter(|part| !part.is_empty()).unwrap_or("fleet")
}

impl Telling {
    /// Writes until the herald is gone.
    pub(crate) async fn run(mut self) {
        let mut settings = PoolSettings::new(&self.url, "cogo-up-audit");
        settings.max_connections = 1;
        let pool = match cogo_db::connect(&settings) {
            Ok(pool) => pool,
            Err(error) => return warn!(%error, "what happens in the tree is not written to the audit"),
        };
        let actor = format!("cogo-up#{}", std::process::id());
        let mut batch = Vec::with_capacity(BATCH);
        while self.rows.recv_many(&mut batch, BATCH).await > 0 {
            self.write_batch(&pool, &actor, std::mem::take(&mut batch)).await;
        }
        let _ = tokio::time::timeout(PATIENCE, pool.close()).await;
    }

    /// Writes events, again and again while the database is away and the fleet goes on.
    async fn write_batch(&self, pool: &PgPool, actor: &str, batch: Vec<Told>) {
        let mut last_tries = 0;
        loop {
            let written = tokio::time::timeout(PATIENCE, write(pool, actor, &batch)).await;
            match written {
                Ok(Ok(())) => return,
                Ok(Err(error)) if !error.is_transient() => {
                    warn!(%error, events = batch.len(), "audit of the tree refused");
                    return self.metrics.untold(batch.len() as u64);
                }
                Ok(Err(error)) => debug!(%error, "audit of the tree not written yet"),
                Err(_) => debug!("audit of the tree not written in time"),
            }
            last_tries += u32::from(self.rows.is_closed());
            if last_tries >= LAST_TRIES {
                return self.metrics.untold(batch.len() as u64);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn write(pool: &PgPool, actor: &str, batch: &[Told]) -> Result<(), cogo_bus_core::Error> {
    let mut transaction = pool.begin().await?;
    for Told { kind, detail } in batch {
        let event = NewEvent {
            kind,
            tenant: NOBODYS,
            message_id: None,
            root_id: None,
            route: None,
            actor,
            detail: detail.clone(),
        };
        record_event(&mut transaction, &event).await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, happened: Happened) -> Event {
        Event { at: Duration::ZERO, path: path.to_owned(), happened }
    }

    fn metrics() -> (cogo_telemetry::Guard, SupervisionMetrics) {
        let settings = cogo_telemetry::Settings::new("cogo-test", "0.0.0", "test/0");
        let assembled = cogo_telemetry::assemble(&settings, std::io::sink, cogo_telemetry::Look::Json);
        let (_dispatch, guard) = assembled.expect("telemetry without exporters");
        let metrics = SupervisionMetrics::new(&guard.meter());
        (guard, metrics)
    }

    #[test]
    fn labels_are_processes_and_not_instances() {
        for (path, process) in
            [("", "fleet"), ("rag", "rag"), ("rag/rag-embed", "rag-embed"), ("rag/rag-embed/12", "rag-embed")]
        {
            assert_eq!(process_of(path), process, "{path}");
        }
    }

    #[tokio::test]
    async fn life_of_a_process_is_written_to_the_audit() {
        let database = cogo_test_support::database().await;
        let (guard, metrics) = metrics();
        let (herald, telling) = Herald::new(&database.url, metrics);
        let path = "rag/rag-embed/0";
        for happened in [
            Happened::Starting,
            Happened::Spawned { pid: 7 },
            Happened::Started { restarts: 0 },
            Happened::Exited { exit: Exit::Abnormal("signal 9".to_owned()) },
            Happened::RestartPlanned { pause: Duration::from_millis(100) },
            Happened::Starting,
            Happened::Spawned { pid: 8 },
            Happened::Started { restarts: 1 },
            Happened::Stopping,
            Happened::Exited { exit: Exit::Shutdown },
        ] {
            herald.tell(&event(path, happened));
        }
        drop(herald);
        telling.run().await;
        let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(
            "select kind, detail ->> 'to', coalesce(detail ->> 'pid', detail ->> 'exit')
               from public.bus_events where kind like 'tree%' and detail ->> 'agent' = $1 order by id",
        )
        .bind(path)
        .fetch_all(&database.pool)
        .await
        .expect("rows");
        let rows: Vec<(&str, &str, Option<&str>)> =
            rows.iter().map(|(kind, to, fact)| (kind.as_str(), to.as_str(), fact.as_deref())).collect();
        assert_eq!(
            rows,
            [
                ("tree_transition", "starting", None),
                ("tree_spawn", "spawned", Some("7")),
                ("tree_transition", "running", None),
                ("tree_crash", "crashed", Some("signal 9")),
                ("tree_transition", "waiting", None),
                ("tree_transition", "starting", None),
                ("tree_spawn", "spawned", Some("8")),
                ("tree_recovery", "running", None),
                ("tree_transition", "running", None),
                ("tree_transition", "stopping", None),
                ("tree_terminate", "terminated", Some("stopped")),
            ]
        );
        let text = guard.exposition().prometheus_text();
        assert!(text.contains("cogo_supervision_events_total{event=\"crash\",process=\"rag-embed\"} 1"), "{text}");
        assert!(text.contains("cogo_supervision_downtime_seconds_count{process=\"rag-embed\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn events_that_a_dead_database_does_not_take_are_counted_and_hold_nobody_up() {
        let (guard, metrics) = metrics();
        let (herald, telling) = Herald::new("postgres://nobody@127.0.0.1:1/none", metrics);
        for pid in 0..u32::try_from(BUFFERED).expect("small") + 3 {
            herald.tell(&event("a/0", Happened::Spawned { pid }));
        }
        drop(telling);
        herald.tell(&event("a/0", Happened::Spawned { pid: 1 }));
        let text = guard.exposition().prometheus_text();
        assert!(text.contains("cogo_supervision_untold_total 4"), "{text}");
    }
}
