//! The long run: rounds of load under faults that chance picks, each judged at its end, until enough messages went through.

mod faults;
mod recovery;
mod server;

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use cogo_bus_core::{Bus, CountedBy, Limit};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::{
    Chance, Handling, Harm, KeeperSettings, ProducerSettings, ROUTE, RecordedBus, Report, Rest, Role, Scene,
    WorkerSettings,
    journal::{Journal, now_us},
};

use faults::Storming;
use recovery::Recovery;
use server::Server;

/// What a storm is told.
#[derive(Debug, Clone)]
pub struct StormSettings {
    /// The program that runs one client, and its arguments.
    pub program: (PathBuf, Vec<String>),
    /// At least this many messages go through.
    pub messages: u64,
    /// Messages of one round; all of its calls are held in memory.
    pub round: u64,
    /// What decides the faults.
    pub seed: u64,
    /// How long workers own what they claim.
    pub lease: Duration,
    /// Statements that break the bus before it begins, to see that the checker sees it.
    pub sabotage: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tally {
    /// Messages that went through.
    pub messages: u64,
    /// Acknowledged and gone, or never ended.
    pub lost: usize,
    /// Completed or otherwise done twice.
    pub duplicated: usize,
    /// Accepted from one who no longer owned it.
    pub stale_accepted: usize,
    /// Every broken promise, those above included.
    pub violations: usize,
    /// How many messages of killed workers were seen to run again, while the database did not go away as well.
    pub recoveries: usize,
    /// Time from the kill of a worker until a message of it ran again, in seconds: half of them took no longer.
    pub recovery_p50_s: f64,
    /// The same: 99 of 100 took no longer.
    pub recovery_p99_s: f64,
    /// The same: the longest.
    pub recovery_max_s: f64,
    /// Longest time that a recovery may take, in seconds, that in which the database was away aside: the lease and 2 s.
    pub recovery_limit_s: f64,
    /// How many messages of killed workers ran again later than that; those during which the database went away count too.
    pub recoveries_late: usize,
    /// Those of them that stood in the queue again in time and waited there, while every worker that asked got others.
    pub recoveries_waiting: usize,
    /// Longest time from the kill of a worker until a message of it stood in the queue again, that in which the database was
    /// away aside, in seconds.
    pub queued_again_max_s: f64,
    /// Longest time from the kill of a worker until a message of it ran again, that in which the database was away aside, in
    /// seconds.
    pub recovery_net_max_s: f64,
    /// Longest time that Postgres was away after a kill, in seconds.
    pub outage_max_s: f64,
    /// Longest time from the end of the faults until everything had ended, in seconds.
    pub drain_max_s: f64,
    /// Lease of every claim, in seconds.
    pub lease_s: f64,
    /// Calls that clients made.
    pub calls: usize,
    /// Those of which nobody knows the outcome.
    pub unknown: usize,
    /// Workers, producers and keepers that were killed.
    pub clients_killed: u32,
    /// Workers that were stopped past their lease and continued.
    pub workers_stopped: u32,
    /// Kills of Postgres.
    pub postgres_killed: u32,
    /// Cuts, stalls and delays of connections, and notifications that were tampered with.
    pub connections_disturbed: u32,
    /// What decided the faults.
    pub seed: u64,
    /// Rounds that have ended.
    pub rounds: u32,
    /// Those in which not everything had ended 15 minutes after the faults, without anybody's help.
    pub rounds_unfinished: u32,
    /// Promises about which no round said anything, such as those of the registry, which takes no part.
    pub not_judged: BTreeSet<String>,
    /// Rows of ended rounds that retention may not remove yet, such as those with ids of a clock that is ahead.
    pub rows_left: usize,
    /// Time under faults, in seconds.
    pub stormy_s: f64,
    /// Time from the end of the faults of each round until everything had ended, in seconds.
    pub draining_s: f64,
    /// Time that was spent on judging and sweeping, in seconds.
    pub judging_s: f64,
    /// Length of the run, in seconds.
    pub elapsed_s: f64,
    /// Each recovery so far, in seconds.
    #[serde(skip)]
    pub recovered_s: Vec<f64>,
    /// The first broken promises, for people.
    #[serde(skip)]
    pub reports: Vec<String>,
}

/// How long after the end of a dead worker's lease its messages may run again: a promise of the bus.
const AFTER_THE_LEASE: Duration = Duration::from_secs(2);

/// Faults stop, and then everything must have ended within this time. Messages of a group run one after the other, and a busy machine takes long for each.
const DRAIN: Duration = Duration::from_secs(900);

/// Runs a storm on a Postgres of its own; `progress` is told how far it is.
///
/// # Errors
/// When Postgres cannot be run or a client cannot be started; broken promises are no errors.
pub async fn storm(settings: &StormSettings, mut progress: impl FnMut(&Tally)) -> anyhow::Result<Tally> {
    let directory = tempfile::Builder::new().prefix("cogo-storm-").tempdir().context("make a directory")?;
    let server = Box::pin(Server::start(directory.path())).await?;
    if let Some(statements) = &settings.sabotage {
        sqlx::raw_sql(AssertSqlSafe(statements.as_str())).execute(&server.pool).await.context("break the bus")?;
    }
    let begin = Instant::now();
    let recovery_limit_s = (settings.lease + AFTER_THE_LEASE).as_secs_f64();
    let lease_s = settings.lease.as_secs_f64();
    let mut tally = Tally { seed: settings.seed, lease_s, recovery_limit_s, ..Tally::default() };
    let mut chance = Chance::new(settings.seed);
    let mut round = 0;
    let mut former = HashSet::new();
    // rows of a broken round are left as they are, so it is the last
    while tally.messages < settings.messages && tally.violations + tally.rounds_unfinished as usize == 0 {
        round += 1;
        let messages = settings.round.min(settings.messages - tally.messages);
        let round = Round { number: round, messages, former: std::mem::take(&mut former) };
        let weather = Box::pin(weather(settings, &server, &mut chance, round, &mut tally, &mut progress));
        let told = tokio::select! {
            told = weather => told,
            () = interrupted() => Err(anyhow::anyhow!("Interrupted")),
        };
        match told {
            Ok(left) => former = left,
            Err(error) => {
                server.stop().await?;
                return Err(error);
            }
        }
        tally.rounds += 1;
        tally.rows_left = former.len();
        tally.elapsed_s = begin.elapsed().as_secs_f64();
        progress(&tally);
    }
    server.stop().await?;
    Ok(tally)
}

/// Somebody wants an end; Postgres must not be left behind.
async fn interrupted() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

struct Round {
    number: u32,
    messages: u64,
    /// What is left of the rounds before.
    former: HashSet<Uuid>,
}

/// One round; answers what is left of it.
async fn weather(
    settings: &StormSettings,
    server: &Server,
    chance: &mut Chance,
    round: Round,
    tally: &mut Tally,
    progress: &mut impl FnMut(&Tally),
) -> anyhow::Result<HashSet<Uuid>> {
    let (program, arguments) = &settings.program;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let scene =
        Scene::new(program.clone(), &arguments, &server.url, chance.number())?.labelled(&format!("-r{}", round.number));
    let former = round.former.len();
    let scene = scene.after(round.former);
    // limited claims go another way than those of a route without limits
    let is_limited = round.number.is_multiple_of(4);
    limit(&server.pool, is_limited.then_some(MOST_OF_A_TENANT)).await?;
    let mut storming = Storming::begin(scene, server, settings.lease, chance).await?;
    let begin = Instant::now();
    storming.blow(round.messages, former, tally, progress).await?;
    tally.stormy_s += begin.elapsed().as_secs_f64();
    let (mut scene, outages) = storming.calm().await?;
    let drained = scene.drained(&server.pool, DRAIN).await;
    tally.rounds_unfinished += u32::from(drained.is_none());
    let drain = drained.unwrap_or(DRAIN);
    tally.drain_max_s = tally.drain_max_s.max(drain.as_secs_f64());
    tally.draining_s += drain.as_secs_f64();
    let begin = Instant::now();
    let report = scene.verdict(&server.pool, Rest::Drained).await?;
    let taken_back = recovery::taken_back(&server.pool).await?;
    let recoveries = recovery::recoveries(&scene.history()?, scene.deaths(), &outages, &taken_back);
    tally.add(&report);
    // a limit keeps messages waiting while workers are free, however soon they are back
    if !is_limited {
        tally.add_recoveries(&recoveries, settings.lease + AFTER_THE_LEASE);
    }
    if !report.violations.is_empty() {
        return Ok(HashSet::new());
    }
    let left = sweep(&server.pool).await.context("remove the messages of a round");
    tally.judging_s += begin.elapsed().as_secs_f64();
    left
}

impl Tally {
    /// Whether every promise held, that of how soon a dead worker's messages run again included; the queue itself makes
    /// nobody late.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.violations == 0 && self.rounds_unfinished == 0 && self.recoveries_late == self.recoveries_waiting
    }

    fn add(&mut self, report: &Report) {
        self.messages += report.messages as u64;
        self.lost += report.count(Harm::Lost);
        self.duplicated += report.count(Harm::Duplicated);
        self.stale_accepted += report.count(Harm::Stale);
        self.violations += report.violations.len();
        self.calls += report.calls;
        self.unknown += report.unknown;
        let not_judged = report.not_applicable.iter().map(|(invariant, _)| format!("{invariant:?}")).collect();
        self.not_judged = if self.rounds == 0 { not_judged } else { &self.not_judged & &not_judged };
        if !report.violations.is_empty() {
            self.reports.push(report.to_string());
        }
    }

    fn add_recoveries(&mut self, recoveries: &[Recovery], limit: Duration) {
        self.recoveries_late += recoveries.iter().filter(|recovery| recovery.is_late(limit)).count();
        self.recoveries_waiting += recoveries.iter().filter(|recovery| recovery.waited_its_turn(limit)).count();
        let net = recoveries.iter().map(Recovery::net).max().unwrap_or_default();
        self.recovery_net_max_s = self.recovery_net_max_s.max(net.as_secs_f64());
        let queued = recoveries.iter().filter_map(|recovery| recovery.queued).max().unwrap_or_default();
        self.queued_again_max_s = self.queued_again_max_s.max(queued.as_secs_f64());
        let with_database = recoveries.iter().filter(|recovery| recovery.without_database.is_zero());
        self.recovered_s.extend(with_database.map(|recovery| recovery.time.as_secs_f64()));
        self.recovered_s.sort_unstable_by(f64::total_cmp);
        self.recoveries = self.recovered_s.len();
        let share = |percent: usize| self.recovered_s.get((self.recoveries * percent).div_ceil(100).saturating_sub(1));
        let [p50, p99, max] = [50, 99, 100].map(|percent| share(percent).copied().unwrap_or_default());
        (self.recovery_p50_s, self.recovery_p99_s, self.recovery_max_s) = (p50, p99, max);
    }
}

/// Removes everything that retention may remove; answers what must stay, such as ids of a clock that is ahead.
async fn sweep(pool: &PgPool) -> anyhow::Result<HashSet<Uuid>> {
    let bus = RecordedBus::new(pool.clone(), Journal::in_memory("sweep"));
    while bus.retain(Duration::ZERO, 5_000).await? > 0 {}
    while bus.bus().retain_events(Duration::ZERO, 50_000).await? > 0 {}
    let left: Vec<(Uuid, bool)> =
        sqlx::query_as("select id, done_at is not null from public.agent_messages").fetch_all(pool).await?;
    anyhow::ensure!(left.iter().all(|(_, has_ended)| *has_ended), "a round ended with unfinished messages");
    Ok(left.into_iter().map(|(id, _)| id).collect())
}

/// Sets or removes the limit of each tenant.
async fn limit(pool: &PgPool, max_running: Option<u32>) -> anyhow::Result<()> {
    let limit = Limit { counted_by: CountedBy::Tenant, subject: None, max_running, per_second: None, burst: None };
    Bus::new(pool.clone()).set_limit(&ROUTE, &limit, "storm").await.context("limit the route")
}

/// How many messages of one tenant run at once in limited rounds.
const MOST_OF_A_TENANT: u32 = 200;

/// Claims of few and of many are kept differently by some layouts.
const CLAIMS: [u16; 3] = [4, 40, 150];

fn worker(lease: Duration, chance: &mut Chance) -> Role {
    let batch = CLAIMS[usize::try_from(chance.below(CLAIMS.len() as u64)).unwrap_or(0)];
    let handling = if chance.percent(20) { Handling::Batch { work_ms: 20 } } else { Handling::OneByOne };
    worker_of(lease, batch, handling)
}

/// One that comes back for more at once, so that what is given back does not wait for it.
fn quick_worker(lease: Duration) -> Role {
    worker_of(lease, CLAIMS[0], Handling::OneByOne)
}

fn worker_of(lease: Duration, batch: u16, handling: Handling) -> Role {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    Role::Worker(WorkerSettings { lease_ms, batch, poll_ms: 100, listens: true, handling })
}

fn keeper() -> Role {
    Role::Keeper(KeeperSettings { every_ms: 100, replays: 5, keep_ms: None })
}

fn producer(messages: u64) -> Role {
    Role::Producer(ProducerSettings { messages, batch: 40, plain: false, pause_ms: 0 })
}

/// When something begins, for outages.
fn moment() -> i64 {
    now_us()
}
