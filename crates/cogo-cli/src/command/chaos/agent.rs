//! `cogo chaos-agent`: one process of a chaos run, a service in the frame that every service has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use cogo_bus_check::{Answer, Ending, Held, Journal, Operation, Outcome, Taken};
use cogo_bus_core::Error as BusError;
use cogo_contracts::{NewMessage, Route};
use cogo_registry_core::Registry;
use cogo_service_runtime::{Claim, Frame, Handler, HandlerError, NoSettings, Service};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::{Builder, Uuid};

use super::schedule::{KEEPER, WORKER};
use crate::{failure::Failure, parent};

/// The route of all work in a chaos run.
pub(crate) const ROUTE: Route = Route::constant("chaos", "work");
/// As the process `bus-reclaimer` has it.
const CHORES_EVERY: Duration = Duration::from_secs(1);
const SUSPECT_AFTER: Duration = Duration::from_secs(15);
const DEAD_AFTER: Duration = Duration::from_secs(30);
const BATCH: u32 = 500;

/// Be one process of a chaos run.
#[derive(Debug, Args)]
pub(crate) struct ChaosAgent {
    /// Process number of the parent.
    #[arg(long)]
    parent: u32,
    /// What to be.
    role: Role,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    #[value(name = WORKER)]
    Worker,
    #[value(name = KEEPER)]
    Keeper,
}

impl ChaosAgent {
    /// The whole life of the process.
    ///
    /// # Errors
    /// When it could be left behind.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        parent::end_with(self.parent)?;
        let version = env!("CARGO_PKG_VERSION");
        Ok(match self.role {
            Role::Worker => cogo_service_runtime::serve::<ChaosWorker>(version),
            Role::Keeper => cogo_service_runtime::serve::<ChaosKeeper>(version),
        })
    }
}

/// Where a worker notes what it does, and which clock it believes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct WorkerSettings {
    /// Directory of the journals.
    chaos_journals: String,
    /// File that says by how many ms its clock is off.
    chaos_clock: String,
}

/// Works on what the load sends.
struct ChaosWorker;

impl Service for ChaosWorker {
    const NAME: &'static str = WORKER;
    const DOMAIN: &'static str = "chaos";
    const LEVEL: i16 = 2;
    // given by the environment
    const PORT: u16 = 0;
    const CAPABILITIES: &'static [&'static str] = &["chaos"];
    const ROUTE: Option<Route> = Some(ROUTE);
    type Settings = WorkerSettings;

    async fn start(frame: &mut Frame<WorkerSettings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        let name = format!("{WORKER}-{}-{}", frame.common().agent_slot, std::process::id());
        let journal = Journal::in_file(&name, 0, &Path::new(&settings.chaos_journals).join(&name))?;
        frame.worker(Work { journal, clock: settings.chaos_clock.into() });
        Ok(())
    }
}

/// What the load asks for.
#[derive(Debug, Deserialize)]
pub(crate) struct Task {
    /// How long it takes.
    work_ms: u64,
    /// How many messages it sends together with its completion.
    #[serde(default)]
    follow_ups: u16,
    /// Whether it writes a row of its own together with its completion.
    #[serde(default)]
    effect: bool,
}

struct Work {
    journal: Journal,
    clock: PathBuf,
}

impl Handler for Work {
    const ROUTE: Route = ROUTE;
    type Request = Task;
    type Reply = serde_json::Value;

    async fn handle(&self, task: Task, claim: &Claim) -> Result<serde_json::Value, HandlerError> {
        let held = Held { id: claim.id(), attempt: claim.attempt() };
        self.note_claim(held, claim);
        tokio::time::sleep(Duration::from_millis(task.work_ms)).await;
        for _ in 0..task.follow_ups {
            let payload = json!({"work_ms": task.work_ms / 2, "__assignment": {"budget": {"maxTokens": 1_000}}});
            claim.send(NewMessage { id: Some(self.id_by_own_clock()), ..NewMessage::new(ROUTE, None, payload) });
        }
        if task.effect {
            let holder = claim.holder().to_owned();
            claim.within_completion(move |connection| write_effect(connection, held, holder.clone()).boxed());
        }
        let reply = json!({"attempt": held.attempt, "by": std::process::id()});
        let ending = Ending { held, result: Some(reply.clone()), follow_ups: usize::from(task.follow_ups) };
        // what came of it the frame knows; for the checker it may have been recorded from now on
        self.journal.invoked(Operation::Complete { holder: claim.holder().to_owned(), ended: vec![ending] });
        Ok(reply)
    }
}

impl Work {
    /// Notes that it has the message, but not for how long: the frame knows when the claim came and how it was extended.
    fn note_claim(&self, held: Held, claim: &Claim) {
        let asked = Operation::Claim { holder: claim.holder().to_owned(), lease_ms: 0 };
        let taken = Taken { held, tenant: claim.tenant().to_owned(), remaining_ms: None, mark: None };
        let number = self.journal.invoked(asked);
        self.journal.returned(number, Outcome::Ok(Answer::Taken(vec![taken])));
    }

    /// A time-ordered id by a clock that may be wrong.
    fn id_by_own_clock(&self) -> Uuid {
        let off_ms: i64 = fs::read_to_string(&self.clock).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let now_ms = self.journal.client_ms() + off_ms;
        let mut random = [0; 10];
        random.copy_from_slice(&Uuid::new_v4().as_bytes()[..10]);
        Builder::from_unix_timestamp_millis(now_ms.unsigned_abs(), &random).into_uuid()
    }
}

/// One row for each completion that is recorded, with the living owner of the slot as this transaction sees it.
async fn write_effect(connection: &mut sqlx::PgConnection, held: Held, holder: String) -> Result<(), BusError> {
    sqlx::query(
        "insert into chaos.effects (message_id, attempt, holder, owner)
         select $1, $2, $3,
                (select a.holder from registry.agents a
                  where a.name = split_part($3, '/', 1)
                    and a.slot = split_part(split_part($3, '#', 1), '/', 2)::integer and a.state <> 'terminated')",
    )
    .bind(held.id)
    .bind(held.attempt)
    .bind(holder)
    .execute(connection)
    .await?;
    Ok(())
}

/// Does what `bus-reclaimer` does: takes back what vanished workers held, and declares the silent dead.
struct ChaosKeeper;

impl Service for ChaosKeeper {
    const NAME: &'static str = KEEPER;
    const DOMAIN: &'static str = "chaos";
    const LEVEL: i16 = 2;
    const PORT: u16 = 0;
    const CAPABILITIES: &'static [&'static str] = &["reclaim"];
    const ROUTE: Option<Route> = None;
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        let bus = frame.bus().clone();
        frame.chore("reclaim", CHORES_EVERY, move || {
            let bus = bus.clone();
            async move {
                let reclaimed = bus.reclaim(BATCH).await? + bus.expire(BATCH).await?;
                Ok((reclaimed > 0).then(|| format!("took back {reclaimed} messages")))
            }
        });
        let registry = Registry::new(frame.pool().clone());
        frame.chore("sweep", CHORES_EVERY, move || {
            let registry = registry.clone();
            async move {
                let outcome = registry.sweep(SUSPECT_AFTER, DEAD_AFTER).await?;
                let changed = outcome.suspected > 0 || outcome.died > 0 || outcome.held_back > 0;
                Ok(changed.then(|| {
                    format!("{} suspect, {} dead, {} held back", outcome.suspected, outcome.died, outcome.held_back)
                }))
            }
        });
        Ok(())
    }
}
