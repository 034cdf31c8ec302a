//! Load on the bus: producers that send in batches or singly, consumers that claim and complete in batches.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cogo_bus_core::{Bus, ClaimRequest, Completion, Fence, WakeUps};
use cogo_contracts::{NewMessage, Route, Tenant};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::failure::Failure;

/// Where the load goes.
pub(crate) const WORK: Route = Route::constant("bench", "work");
/// Connections that send one message at a time.
pub(crate) const SINGLE_SENDERS: u16 = 8;
/// One message in this many of a batch phase is sent singly, within the bounds that follow.
const SINGLY: u32 = 10;
const FEWEST_SINGLY: u32 = 80;
const MOST_SINGLY: u32 = 8000;
/// How long a consumer rests when it found nothing or little.
const REST: Duration = Duration::from_millis(5);
/// Messages that do not come for so long are lost, and counted so.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of `{"id":,"pad":""}`, what a payload has beside its number and its padding.
const EMPTY_PAYLOAD_BYTES: u32 = 16;
/// Far longer than a batch takes: nothing is to run out in a measurement.
pub(crate) const LEASE: Duration = Duration::from_secs(120);

/// What is measured with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) messages: u32,
    pub(crate) consumers: u16,
    pub(crate) producers: u16,
    pub(crate) batch: u16,
    pub(crate) payload_bytes: u32,
}

impl Plan {
    /// As many connections as are ever busy at once, and a few for looking on.
    pub(crate) fn connections(self) -> u32 {
        u32::from(self.consumers) + u32::from(self.producers.max(SINGLE_SENDERS)) + 6
    }

    /// Sizes of the batches that a phase consists of.
    pub(crate) fn batches(self) -> u32 {
        self.messages.div_ceil(u32::from(self.batch))
    }

    pub(crate) fn size_of_batch(self, number: u32) -> u32 {
        (self.messages - number * u32::from(self.batch)).min(u32::from(self.batch))
    }

    /// A JSON object of the size that is wanted.
    pub(crate) fn payload(self, number: u32) -> Value {
        let digits = number.checked_ilog10().unwrap_or(0) + 1;
        let pad = self.payload_bytes.saturating_sub(EMPTY_PAYLOAD_BYTES + digits);
        json!({"id": number, "pad": "x".repeat(usize::try_from(pad).unwrap_or(0))})
    }
}

/// The load and what it has sent and completed so far; clones share it.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) bus: Bus,
    pub(crate) plan: Plan,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sent: Mutex<Vec<Uuid>>,
    acknowledged: Mutex<Vec<Uuid>>,
    sent_count: AtomicU64,
    done_count: AtomicU64,
}

impl Load {
    pub(crate) fn new(pool: PgPool, plan: Plan) -> Self {
        Self { bus: Bus::new(pool), plan, shared: Arc::default() }
    }

    /// The same load over a connection of its own: sessions that take turns at random lose what the processor had at hand.
    pub(crate) fn on_own_connection(&self) -> Self {
        let options = self.bus.pool().connect_options().as_ref().clone();
        let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false).connect_lazy_with(options);
        Self { bus: Bus::new(pool), ..self.clone() }
    }

    /// As many loads as senders, each over a connection that is open: producers of peers and of the limit have theirs too.
    async fn senders(&self, count: u16) -> Result<Vec<Self>, Failure> {
        let mut senders = Vec::new();
        for _ in 0..count {
            let load = self.on_own_connection();
            drop(load.bus.pool().acquire().await?);
            senders.push(load);
        }
        Ok(senders)
    }

    /// Sends all messages in batches; answers how many a second.
    pub(crate) async fn enqueue(&self) -> Result<f64, Failure> {
        let next = Arc::new(AtomicU64::new(0));
        let senders = self.senders(self.plan.producers).await?;
        let began = Instant::now();
        let mut producers = JoinSet::new();
        for load in senders {
            let next = Arc::clone(&next);
            producers.spawn(async move {
                loop {
                    let number = u32::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
                    if number >= load.plan.batches() {
                        return Ok(());
                    }
                    load.send_batch(load.plan.size_of_batch(number)).await?;
                }
            });
        }
        all(producers).await?;
        Ok(f64::from(self.plan.messages) / began.elapsed().as_secs_f64())
    }

    /// Sends messages one by one from several connections; answers how many a second.
    pub(crate) async fn enqueue_singly(&self) -> Result<f64, Failure> {
        let each = (self.plan.messages / SINGLY).clamp(FEWEST_SINGLY, MOST_SINGLY) / u32::from(SINGLE_SENDERS);
        let loads = self.senders(SINGLE_SENDERS).await?;
        let began = Instant::now();
        let mut senders = JoinSet::new();
        for load in loads {
            senders.spawn(async move {
                for _ in 0..each {
                    load.send_one(WORK).await?;
                }
                Ok(())
            });
        }
        all(senders).await?;
        Ok(f64::from(each * u32::from(SINGLE_SENDERS)) / began.elapsed().as_secs_f64())
    }

    /// Completes everything that was sent; answers how many a second.
    pub(crate) async fn drain(&self) -> Result<f64, Failure> {
        let stop = Arc::default();
        drained(self.consumers(&stop), &stop, &self.shared.done_count, &self.shared.sent_count).await
    }

    /// Sends in batches for a while; answers how many a second were sent.
    pub(crate) async fn send_for(&self, time: Duration) -> Result<f64, Failure> {
        let (stop, mut producers) = (Arc::default(), JoinSet::new());
        self.produce(&mut producers, &stop).await?;
        rate_of(producers, &stop, time, &self.shared.sent_count).await
    }

    /// Sends and completes at once for a while; answers how many a second were completed.
    pub(crate) async fn mixed(&self, time: Duration) -> Result<f64, Failure> {
        let stop = Arc::default();
        let mut workers = self.consumers(&stop);
        self.produce(&mut workers, &stop).await?;
        rate_of(workers, &stop, time, &self.shared.done_count).await
    }

    /// Adds producers that send until they are told to stop.
    async fn produce(&self, workers: &mut JoinSet<Result<(), Failure>>, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        for load in self.senders(self.plan.producers).await? {
            let stop = Arc::clone(stop);
            workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    load.send_batch(u32::from(load.plan.batch)).await?;
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// Consumers that work until they are told to stop.
    pub(crate) fn consumers(&self, stop: &Arc<AtomicBool>) -> JoinSet<Result<(), Failure>> {
        let mut consumers = JoinSet::new();
        for number in 0..self.plan.consumers {
            let (load, stop) = (self.on_own_connection(), Arc::clone(stop));
            consumers.spawn(async move {
                let holder = format!("bench/{number}#{}", std::process::id());
                while !stop.load(Ordering::Relaxed) {
                    let found = load.work(&WORK, &holder).await?.len();
                    rest_after(found, load.plan).await;
                }
                Ok(())
            });
        }
        consumers
    }

    /// Claims one batch and completes it; answers what was claimed and when it was in the hands of the worker.
    pub(crate) async fn work(&self, route: &Route, holder: &str) -> Result<Vec<(Uuid, Instant)>, Failure> {
        let request = ClaimRequest { route, holder, instance: None, max_messages: self.plan.batch, lease: LEASE };
        let claimed = self.bus.claim(&request).await?;
        let at = Instant::now();
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let ended: Vec<(Fence, Completion)> = claimed
            .iter()
            .map(|message| {
                let result = Some(json!({"ok": true}));
                (message.fence(), Completion { result, snippet: Some("ok".to_owned()), ..Completion::default() })
            })
            .collect();
        let recorded = self.bus.complete_many(&ended, holder).await?;
        self.shared.done_count.fetch_add(count(&recorded), Ordering::SeqCst);
        locked(&self.shared.acknowledged).extend(recorded);
        Ok(claimed.iter().map(|message| (message.id, at)).collect())
    }

    /// Sends one message; answers its id.
    pub(crate) async fn send_one(&self, route: Route) -> Result<Uuid, Failure> {
        let sent = self.bus.enqueue(&self.message(route, 0)?).await?;
        self.remember(&[sent.id]);
        Ok(sent.id)
    }

    /// One message there and back: returns once the sender has the reply.
    pub(crate) async fn ask(&self, route: Route, patience: Duration, wakeups: &WakeUps) -> Result<(), Failure> {
        let reply = self.bus.request(&self.message(route, 0)?, patience, wakeups).await;
        let reply = reply.map_err(|error| Failure::failed("A ping did not come back").because(&error))?;
        self.remember(&[reply.id]);
        Ok(())
    }

    async fn send_batch(&self, size: u32) -> Result<(), Failure> {
        let messages = (0..size).map(|number| self.message(WORK, number)).collect::<Result<Vec<_>, Failure>>()?;
        let sent: Vec<Uuid> = self.bus.enqueue_many(&messages).await?.iter().map(|sent| sent.id).collect();
        self.remember(&sent);
        Ok(())
    }

    fn message(&self, route: Route, number: u32) -> Result<NewMessage, Failure> {
        let tenant: Tenant = "default".parse().map_err(|error| Failure::failed("Name the tenant").because(&error))?;
        Ok(NewMessage::new(route, Some(tenant), self.plan.payload(number)))
    }

    fn remember(&self, ids: &[Uuid]) {
        locked(&self.shared.sent).extend_from_slice(ids);
        self.shared.sent_count.fetch_add(count(ids), Ordering::SeqCst);
    }

    /// Everything that was sent, and everything whose completion was acknowledged, as often as it was.
    pub(crate) fn into_ids(self) -> (Vec<Uuid>, Vec<Uuid>) {
        let take = |ids: &Mutex<Vec<Uuid>>| std::mem::take(&mut *locked(ids));
        (take(&self.shared.sent), take(&self.shared.acknowledged))
    }
}

/// Who finds few lets more gather: each look costs as much as many messages.
pub(crate) async fn rest_after(found: usize, plan: Plan) {
    if found < usize::from(plan.batch) / 20 {
        tokio::time::sleep(REST).await;
    }
}

/// Lets workers work for a while, then tells them to stop; answers by how much `done` grew a second until the last ended.
pub(crate) async fn rate_of(
    workers: JoinSet<Result<(), Failure>>,
    stop: &AtomicBool,
    time: Duration,
    done: &AtomicU64,
) -> Result<f64, Failure> {
    let (before, began) = (done.load(Ordering::SeqCst), Instant::now());
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    all(workers).await?;
    let elapsed = began.elapsed();
    Ok(as_f64(done.load(Ordering::SeqCst) - before) / elapsed.as_secs_f64())
}

/// Lets workers work until as many are done as were sent, or none has been for so long that they are lost; answers how many
/// a second were done.
pub(crate) async fn drained(
    mut workers: JoinSet<Result<(), Failure>>,
    stop: &AtomicBool,
    done: &AtomicU64,
    sent: &AtomicU64,
) -> Result<f64, Failure> {
    let (before, began) = (done.load(Ordering::SeqCst), Instant::now());
    let mut last = (before, Instant::now());
    let mut ended = began.elapsed();
    while !workers.is_empty() {
        let now = done.load(Ordering::SeqCst);
        let is_complete = now >= sent.load(Ordering::SeqCst);
        if now > last.0 {
            last = (now, Instant::now());
        }
        if (is_complete || last.1.elapsed() > PATIENCE) && !stop.swap(true, Ordering::SeqCst) {
            ended = began.elapsed();
        }
        tokio::select! {
            Some(worker) = workers.join_next() => flat(worker)?,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    Ok(as_f64(done.load(Ordering::SeqCst) - before) / ended.as_secs_f64())
}

/// Waits for all tasks; the first failure ends the rest.
pub(crate) async fn all(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(task) = tasks.join_next().await {
        flat(task)?;
    }
    Ok(())
}

pub(crate) fn flat<T>(task: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    task.map_err(|error| Failure::failed("A task of the load broke off").because(&error))?
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

/// Counts of a benchmark are far below where this loses digits.
pub(crate) fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { messages: 250, consumers: 1, producers: 1, batch: 100, payload_bytes: 300 };

    #[test]
    fn batches_make_up_the_messages() {
        let sizes: Vec<u32> = (0..PLAN.batches()).map(|number| PLAN.size_of_batch(number)).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }

    #[test]
    fn payloads_have_the_size_that_was_asked_for() {
        for number in [0, 7, 999] {
            assert_eq!(PLAN.payload(number).to_string().len(), 300);
        }
    }
}
