//! Pings: one message there and back, as a sender sees it, on an idle bus and on a busy one.

use std::{
    collections::HashMap,
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
    command::bench_bus_load::{Load, SINGLE_SENDERS, all},
    failure::Failure,
    percentile::Times,
};

const PING: Route = Route::constant("bench", "ping");
/// Between two pings of an idle bus, as in the scripts of the peers.
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
    /// Until the sender saw it done.
    pub(crate) seen_p50_ms: f64,
    pub(crate) seen_p99_ms: f64,
    /// Other messages a second meanwhile.
    pub(crate) load_per_s: f64,
}

/// Pings while nothing else happens.
pub(crate) async fn idle_pings(load: &Load, samples: u32) -> Result<Pings, Failure> {
    pings(load, samples).await
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
                load.send_one().await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let began = Instant::now();
    let measured = pings(load, samples).await;
    let load_per_s =
        f64::from(u32::try_from(sent.load(Ordering::Relaxed)).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    all(senders).await?;
    all(consumers).await?;
    load.drain().await?;
    Ok(Pings { load_per_s, ..measured? })
}

async fn pings(load: &Load, samples: u32) -> Result<Pings, Failure> {
    let stop = CancellationToken::new();
    let _stop_at_end = stop.clone().drop_guard();
    let wakeups = WakeUps::default();
    let (mut hints, worker_hints) = (wakeups.subscribe(), wakeups.subscribe());
    let mut background = JoinSet::new();
    background.spawn(wakeups.clone().run(load.bus.pool().clone(), stop));
    // the first hint says that the subscription is open
    tokio::time::timeout(PATIENCE, hints.recv()).await.map_err(|_elapsed| late())?.ok();
    let (claims, mut claimed) = mpsc::unbounded_channel();
    let mut worker = JoinSet::new();
    worker.spawn(work(load.on_own_connection(), worker_hints, claims));
    let load = load.on_own_connection();

    let (mut claimed_ms, mut seen_ms) = (Vec::new(), Vec::new());
    let mut begun = HashMap::new();
    for _ in 0..samples {
        let began = Instant::now();
        let id = load.ask(PING, PATIENCE, &wakeups).await?;
        seen_ms.push(milliseconds(began.elapsed()));
        begun.insert(id, began);
        tokio::time::sleep(PAUSE).await;
    }
    // the worker tells of a claim after its completion, which the sender may have seen before
    while !begun.is_empty() {
        let Ok(Some((of, at))) = tokio::time::timeout(PATIENCE, claimed.recv()).await else { break };
        if let Some(began) = begun.remove(&of) {
            claimed_ms.push(milliseconds(at.duration_since(began)));
        }
    }
    if let Some(ended) = worker.try_join_next() {
        crate::command::bench_bus_load::flat(ended)?;
    }
    let (claimed, seen) = (Times::new(claimed_ms), Times::new(seen_ms));
    let percentile = |times: &Times, percent| times.percentile(percent).unwrap_or(f64::NAN);
    Ok(Pings {
        claimed_p50_ms: percentile(&claimed, 50),
        claimed_p99_ms: percentile(&claimed, 99),
        seen_p50_ms: percentile(&seen, 50),
        seen_p99_ms: percentile(&seen, 99),
        load_per_s: 0.0,
    })
}

/// The worker's side, until nobody wants to know any more.
async fn work(
    load: Load,
    mut hints: broadcast::Receiver<Wake>,
    claims: mpsc::UnboundedSender<(Uuid, Instant)>,
) -> Result<(), Failure> {
    let route = PING.to_string();
    let holder = format!("bench/ping#{}", std::process::id());
    let mut look = FIRST_LOOK;
    loop {
        let worked = load.work(&PING, &holder).await?;
        if worked.is_empty() {
            // as the worker loop of a process does
            let ready = hint(&mut hints, |wake| matches!(wake, Wake::Ready(of) if *of == route));
            let woken = tokio::time::timeout(look, ready).await.is_ok();
            look = if woken { FIRST_LOOK } else { (look * 4).min(POLL) };
        } else {
            look = FIRST_LOOK;
        }
        for claim in worked {
            if claims.send(claim).is_err() {
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
