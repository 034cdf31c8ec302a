//! Pings: one message until it is done, and one request until its reply is there, on an idle bus and on a busy one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cogo_bus_core::{Wake, WakeUps};
use cogo_contracts::Route;
use serde::Serialize;
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    command::{
        bench_bus_bare_ping::BarePing,
        bench_bus_load::{Load, SINGLE_SENDERS, WORK, all, flat},
    },
    failure::Failure,
    percentile::Times,
};

const PING: Route = Route::constant("bench", "ping");
/// After each ping and each request, as in the scripts of the peers.
const PAUSE: Duration = Duration::from_millis(5);
/// First and longest wait of a worker without work.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const POLL: Duration = Duration::from_secs(15);
/// A ping that does not come back is a defect, not a slow one.
const PATIENCE: Duration = Duration::from_secs(20);
/// Single messages a second while pings are measured under load.
const LOAD_PER_S: u32 = 2000;

/// Times from before sending, in ms.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Pings {
    /// Until the message was in the hands of the worker.
    pub(crate) claimed_p50_ms: f64,
    pub(crate) claimed_p99_ms: f64,
    /// Until the worker saw that it is recorded as done.
    pub(crate) done_p50_ms: f64,
    pub(crate) done_p99_ms: f64,
    /// Of a request: until the asker had the reply in hand.
    pub(crate) reply_p50_ms: f64,
    pub(crate) reply_p99_ms: f64,
    /// Of a row without a queue that takes turns with them on an idle bus: three commits and a notification.
    pub(crate) bare_p50_ms: f64,
    pub(crate) bare_p99_ms: f64,
    /// Other messages a second meanwhile.
    pub(crate) load_per_s: f64,
}

/// What the worker tells of a message, once its end is recorded.
#[derive(Debug)]
struct Worked {
    id: Uuid,
    claimed_at: Instant,
    done_at: Instant,
}

/// Pings while nothing else happens.
pub(crate) async fn idle_pings(load: &Load, samples: u32) -> Result<Pings, Failure> {
    pings(load, samples, Some(BarePing::open(load.bus.pool()).await?)).await
}

/// Pings while single messages come from several connections at a fixed rate and are completed.
pub(crate) async fn loaded_pings(load: &Load, samples: u32) -> Result<Pings, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let consumers = load.consumers(&stop);
    let mut senders = JoinSet::new();
    for _ in 0..SINGLE_SENDERS {
        let (load, stop, sent) = (load.on_own_connection(), Arc::clone(&stop), Arc::clone(&sent));
        senders.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * u32::from(SINGLE_SENDERS) / LOAD_PER_S);
            // a sender that fell behind makes up for it, so that the rate is the one that was promised
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                load.send_one(WORK).await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let began = Instant::now();
    let measured = pings(load, samples, None).await;
    let load_per_s =
        f64::from(u32::try_from(sent.load(Ordering::Relaxed)).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    all(senders).await?;
    all(consumers).await?;
    load.drain().await?;
    Ok(Pings { load_per_s, ..measured? })
}

async fn pings(load: &Load, samples: u32, mut bare: Option<BarePing>) -> Result<Pings, Failure> {
    let stop = CancellationToken::new();
    let _stop_at_end = stop.clone().drop_guard();
    let wakeups = WakeUps::default();
    let (mut hints, worker_hints) = (wakeups.subscribe(), wakeups.subscribe());
    let mut background = JoinSet::new();
    background.spawn(wakeups.clone().run(load.bus.pool().clone(), stop));
    // the first hint says that the subscription is open
    tokio::time::timeout(PATIENCE, hints.recv()).await.map_err(|_elapsed| late())?.ok();
    let (tell, mut worked) = mpsc::unbounded_channel();
    let mut worker = JoinSet::new();
    worker.spawn(work(load.on_own_connection(), worker_hints, tell));
    let load = load.on_own_connection();

    let (mut claimed_ms, mut done_ms, mut reply_ms, mut bare_ms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let began = Instant::now();
        let id = load.send_one(PING).await?;
        let Ok(Some(ping)) = tokio::time::timeout(PATIENCE, told_of(&mut worked, id)).await else {
            if let Some(ended) = worker.try_join_next() {
                flat(ended)?;
            }
            return Err(late());
        };
        claimed_ms.push(milliseconds(ping.claimed_at.duration_since(began)));
        done_ms.push(milliseconds(ping.done_at.duration_since(began)));
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        load.ask(PING, PATIENCE, &wakeups).await?;
        reply_ms.push(milliseconds(began.elapsed()));
        tokio::time::sleep(PAUSE).await;
        if let Some(bare) = &mut bare {
            bare_ms.push(milliseconds(bare.ping(PATIENCE).await?));
            tokio::time::sleep(PAUSE).await;
        }
    }
    let [claimed, done, reply, bare] = [claimed_ms, done_ms, reply_ms, bare_ms].map(Times::new);
    let percentile = |times: &Times, percent| times.percentile(percent).unwrap_or(f64::NAN);
    Ok(Pings {
        claimed_p50_ms: percentile(&claimed, 50),
        claimed_p99_ms: percentile(&claimed, 99),
        done_p50_ms: percentile(&done, 50),
        done_p99_ms: percentile(&done, 99),
        reply_p50_ms: percentile(&reply, 50),
        reply_p99_ms: percentile(&reply, 99),
        bare_p50_ms: percentile(&bare, 50),
        bare_p99_ms: percentile(&bare, 99),
        load_per_s: 0.0,
    })
}

/// Passes over what the worker tells of others; none once it is gone.
async fn told_of(worked: &mut mpsc::UnboundedReceiver<Worked>, id: Uuid) -> Option<Worked> {
    loop {
        let of = worked.recv().await?;
        if of.id == id {
            return Some(of);
        }
    }
}

/// The worker's side, until nobody wants to know any more.
async fn work(
    load: Load,
    mut hints: broadcast::Receiver<Wake>,
    tell: mpsc::UnboundedSender<Worked>,
) -> Result<(), Failure> {
    let route = PING.to_string();
    let holder = format!("bench/ping#{}", std::process::id());
    let mut look = FIRST_LOOK;
    loop {
        let worked = load.work(&PING, &holder).await?;
        let done_at = Instant::now();
        if worked.is_empty() {
            // as the worker loop of a process does
            let ready = hint(&mut hints, |wake| matches!(wake, Wake::Ready(of) if *of == route));
            let woken = tokio::time::timeout(look, ready).await.is_ok();
            look = if woken { FIRST_LOOK } else { (look * 4).min(POLL) };
        } else {
            look = FIRST_LOOK;
        }
        for (id, claimed_at) in worked {
            if tell.send(Worked { id, claimed_at, done_at }).is_err() {
                return Ok(());
            }
        }
    }
}

async fn hint(hints: &mut broadcast::Receiver<Wake>, concerns: impl Fn(&Wake) -> bool) {
    loop {
        match hints.recv().await {
            Ok(wake) if concerns(&wake) || wake == Wake::CatchUp => return,
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            Ok(_) => {}
        }
    }
}

fn late() -> Failure {
    Failure::timeout(format!("A ping did not come back within {} s", PATIENCE.as_secs()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
