//! Clients of the bus that run as processes of their own, so that they can be killed, stopped and continued.

mod batch;
mod fault;
mod keeper;
mod producer;
mod worker;

use std::{io::BufRead, path::PathBuf, time::Duration};

use anyhow::Context;
use cogo_contracts::Route;
use cogo_db::PoolSettings;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{chance::Chance, journal::Journal, recorder::RecordedBus};

pub use fault::{Fault, How, Point};
pub use keeper::KeeperSettings;
pub use producer::ProducerSettings;
pub use worker::{Handling, WorkerSettings};

/// The route of every message in these checks.
pub const ROUTE: Route = Route::constant("check", "work");

/// What a client is told when it starts, as one line of JSON on its standard input; when that is closed, it ends in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActorSettings {
    /// Its name, unlike any other's.
    pub name: String,
    /// What its keys share with those of the other clients of its scene.
    pub label: String,
    /// Address of the database.
    pub url: String,
    /// Where it notes what it does.
    pub journal: PathBuf,
    /// What decides its choices.
    pub seed: u64,
    /// How far its own clock is off.
    pub skew_ms: i64,
    /// After which a call is given up.
    pub patience_ms: u64,
    /// What it does.
    pub role: Role,
    /// Where it is killed or stopped, by its own hand.
    pub fault: Option<Fault>,
}

/// What a client does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sends messages and ends.
    Producer(ProducerSettings),
    /// Claims and ends messages until told to end.
    Worker(WorkerSettings),
    /// Heals and cleans until told to end.
    Keeper(KeeperSettings),
}

/// What every client has.
struct Actor {
    name: String,
    label: String,
    bus: RecordedBus,
    pool: PgPool,
    chance: Chance,
    fault: fault::Armed,
    stop: CancellationToken,
}

/// Runs one client: the whole of a process.
///
/// # Errors
/// When the first line of the standard input is not its settings.
pub fn run() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("read the settings")?;
    let settings: ActorSettings = serde_json::from_str(&line).context("parse the settings")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    // the end of the parent closes the pipe as well, so that nobody is left behind
    std::thread::spawn(move || {
        let mut rest = String::new();
        while std::io::stdin().lock().read_line(&mut rest).is_ok_and(|bytes| bytes > 0) {}
        told.cancel();
    });
    runtime.block_on(act(settings, stop))
}

async fn act(settings: ActorSettings, stop: CancellationToken) -> anyhow::Result<()> {
    let pool_settings = PoolSettings {
        max_connections: 4,
        acquire_timeout: Duration::from_millis(settings.patience_ms),
        ..PoolSettings::new(&settings.url, &settings.name)
    };
    let pool = cogo_db::connect(&pool_settings).context("read the address")?;
    let journal = Journal::in_file(&settings.name, settings.skew_ms, &settings.journal).context("open the journal")?;
    let bus = RecordedBus::new(pool.clone(), journal).with_patience(Duration::from_millis(settings.patience_ms));
    let mut actor = Actor {
        name: settings.name,
        label: settings.label,
        bus,
        pool,
        chance: Chance::new(settings.seed),
        fault: fault::Armed::new(settings.fault),
        stop,
    };
    match settings.role {
        Role::Producer(producer) => producer::run(&mut actor, &producer).await,
        Role::Worker(worker) => worker::run(&mut actor, &worker).await,
        Role::Keeper(keeper) => keeper::run(&mut actor, &keeper).await,
    }
    Ok(())
}

impl Actor {
    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits, but not beyond the end.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    }
}
