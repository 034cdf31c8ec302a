//! What the processes of a fleet tell each other of their circuits, through the database.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use cogo_registry_core::{BreakerPhase, BreakerRecord, SharedBreakers};
use cogo_supervision::breaker::{Phase, Shared as Record, SharedPhase};
use sqlx::PgPool;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Dependencies, Dependency, Reach};

/// How often a dependency that is called, or whose circuit is not closed, is compared with what the others know.
const IN_USE: Duration = Duration::from_secs(5);
/// How often one that nobody calls is.
const IDLE: Duration = Duration::from_secs(60);
/// Longest wait for one answer of the database; the circuits work on without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a dependency since the others were last asked.
#[derive(Clone, Copy)]
struct Compared {
    at: Instant,
    calls: u64,
}

impl Dependencies {
    /// Compares with the other processes until `stop`: at once when a circuit changes, else every few seconds.
    /// `by` is this run's name in what the others see.
    pub(crate) async fn exchange(self, pool: PgPool, by: String, stop: CancellationToken) {
        let table = SharedBreakers::new(pool);
        let mut compared: HashMap<String, Compared> = HashMap::new();
        loop {
            let shared = self.living().into_iter().filter(|dependency| dependency.inner.reach != Reach::Run);
            let shared: Vec<Dependency> = shared.collect();
            compared.retain(|name, _| shared.iter().any(|dependency| dependency.name() == name));
            for dependency in shared {
                let before = compared.get(dependency.name()).copied();
                if dependency.is_due(before) {
                    let calls = dependency.inner.calls.load(Ordering::Relaxed);
                    dependency.compare(&table, &by).await;
                    compared.insert(dependency.name().to_owned(), Compared { at: Instant::now(), calls });
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.news() => {}
                () = tokio::time::sleep(IN_USE) => {}
            }
        }
    }
}

impl Dependency {
    fn is_due(&self, before: Option<Compared>) -> bool {
        let Some(before) = before else { return true };
        let in_use = self.inner.calls.load(Ordering::Relaxed) != before.calls || self.phase() != Phase::Closed;
        self.inner.has_news() || before.at.elapsed() >= if in_use { IN_USE } else { IDLE }
    }

    /// Makes this process and the others know the same of it.
    async fn compare(&self, table: &SharedBreakers, by: &str) {
        let cause = self.inner.take_cause().unwrap_or_else(|| "told again".to_owned());
        let breaker = &self.inner.breaker;
        let told = table.exchange(self.name(), by, &cause, |now_ms, theirs| {
            if let Some(theirs) = theirs {
                breaker.merge(now_ms, from_table(theirs));
            }
            to_table(breaker.export(now_ms))
        });
        match timeout(PATIENCE, told).await {
            Ok(Ok(_changed)) => {}
            Ok(Err(error)) => debug!(dependency = self.name(), %error, "circuit not compared with the others"),
            Err(_) => debug!(dependency = self.name(), "circuit not compared with the others in time"),
        }
    }
}

fn to_table(record: Record) -> BreakerRecord {
    let Record { round, phase, open_until_ms, openings } = record;
    let phase = if phase == SharedPhase::Open { BreakerPhase::Open } else { BreakerPhase::Closed };
    BreakerRecord { round, phase, open_until_ms, openings }
}

fn from_table(record: BreakerRecord) -> Record {
    let BreakerRecord { round, phase, open_until_ms, openings } = record;
    let phase = if phase == BreakerPhase::Open { SharedPhase::Open } else { SharedPhase::Closed };
    Record { round, phase, open_until_ms, openings }
}
