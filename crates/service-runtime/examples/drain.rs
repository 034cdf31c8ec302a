//! What the frame of a process costs: drains a route by bare claims and completions, then through a worker.
//!
//! `DATABASE_URL=… cargo run --release -p cogo-service-runtime --example drain`, on a migrated database that is of no
//! other use; `MESSAGES` (50000) and `COGO_CONCURRENCY` may be set. Prints one JSON line a round, with the
//! processor time of this process for a message in microseconds, and ends itself.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that is run by hand, to measure"
)]

use std::time::{Duration, Instant};

use anyhow::Context;
use cogo_bus_core::{Bus, ClaimRequest, Completion, Fence};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_service_runtime::{Claim, Frame, Handler, HandlerError, NoSettings, Service};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const ROUTE: Route = Route::constant("bench", "drain");
const ROUNDS: u32 = 3;
const BATCH: usize = 1000;
const LEASE: Duration = Duration::from_secs(120);

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<Drain>(env!("CARGO_PKG_VERSION"))
}

struct Drain;

struct Answers;

impl Handler for Answers {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _request: Value, _claim: &Claim) -> Result<Value, HandlerError> {
        Ok(json!({"ok": true}))
    }
}

impl Service for Drain {
    const NAME: &'static str = "bench-drain";
    const DOMAIN: &'static str = "bench";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3090;
    const CAPABILITIES: &'static [&'static str] = &["drain"];
    const ROUTE: Option<Route> = Some(ROUTE);
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        let bus = Bus::new(frame.pool().clone());
        let messages = match std::env::var("MESSAGES") {
            Ok(text) => text.parse().context("read MESSAGES")?,
            Err(_absent) => 50_000,
        };
        let mut bare = Vec::new();
        for _ in 0..ROUNDS {
            fill(&bus, messages).await?;
            let (began, spent) = (Instant::now(), processor_time()?);
            let mut consumers = JoinSet::new();
            for number in 0..2 {
                consumers.spawn(drain(bus.clone(), format!("bare-{number}")));
            }
            while let Some(consumer) = consumers.join_next().await {
                consumer??;
            }
            bare.push((rate(messages, began), cost(messages, processor_time()? - spent)));
        }
        frame.worker(Answers);
        tokio::spawn(async move {
            if let Err(error) = rounds(&bus, messages, &bare).await {
                eprintln!("{error:#}");
            }
            // the frame ends as it does in operation
            let _ = std::process::Command::new("kill").arg(std::process::id().to_string()).status();
        });
        Ok(())
    }
}

async fn rounds(bus: &Bus, messages: usize, bare: &[(f64, f64)]) -> anyhow::Result<()> {
    for (bare_per_s, bare_us) in bare {
        bus.pause_route(&ROUTE, "drain").await?;
        fill(bus, messages).await?;
        bus.resume_route(&ROUTE, "drain").await?;
        let (began, spent) = (Instant::now(), processor_time()?);
        let open = "select exists (select from bus.ready) or exists (select from bus.claims)";
        while sqlx::query_scalar(open).fetch_one(bus.pool()).await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (worker_per_s, worker_us) = (rate(messages, began), cost(messages, processor_time()? - spent));
        println!(
            "{}",
            json!({"bare_per_s": bare_per_s.round(), "worker_per_s": worker_per_s.round(),
                   "cost_of_the_runtime": ((1.0 - worker_per_s / bare_per_s) * 100.0).round() / 100.0,
                   "bare_us": bare_us, "worker_us": worker_us})
        );
    }
    Ok(())
}

async fn fill(bus: &Bus, messages: usize) -> anyhow::Result<()> {
    let tenant = Tenant::new("default")?;
    let mut left = messages;
    while left > 0 {
        let size = left.min(BATCH);
        let batch: Vec<NewMessage> = (0..size)
            .map(|number| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"id": number, "pad": "x".repeat(270)})))
            .collect();
        bus.enqueue_many(&batch).await?;
        left -= size;
    }
    Ok(())
}

async fn drain(bus: Bus, holder: String) -> anyhow::Result<()> {
    loop {
        let request = ClaimRequest { route: &ROUTE, holder: &holder, instance: None, max_messages: 1000, lease: LEASE };
        let claimed = bus.claim(&request).await?;
        if claimed.is_empty() {
            return Ok(());
        }
        let ended: Vec<(Fence, Completion)> = claimed
            .iter()
            .map(|message| (message.fence(), Completion { result: Some(json!({"ok": true})), ..Completion::default() }))
            .collect();
        bus.complete_many(&ended, &holder).await?;
    }
}

/// What all threads of this process have used of the processors, to 10 ms: `utime` and `stime` of `proc(5)`.
fn processor_time() -> anyhow::Result<Duration> {
    let line = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = line.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| anyhow::Ok(fields.get(at).context("read /proc/self/stat")?.parse::<u64>()?);
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

/// Microseconds of the processors for a message.
fn cost(messages: usize, spent: Duration) -> f64 {
    (spent.as_secs_f64() * 1e8 / f64::from(u32::try_from(messages).unwrap_or(u32::MAX))).round() / 100.0
}

fn rate(messages: usize, began: Instant) -> f64 {
    f64::from(u32::try_from(messages).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64()
}
