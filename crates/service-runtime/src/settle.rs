//! Gathers completions and failures: whatever has come in while one batch was being written is the next batch. An idle
//! worker waits for nothing, a busy one pays one commit for many messages.

use std::{
    collections::VecDeque,
    error::Error as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::{Completion, Error, Failure, Fence};
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Claim, Handler,
    attempt::Attempts,
    gathered::{Batch, Gathered, Recorded},
    patience::{in_time, silent},
    record::{LAST_WRITE, WRITE_AGAIN},
};

/// Most ends of one statement.
const BATCH: usize = 1000;
/// Most bytes of them, about; a single end may have more. A statement of hundreds of megabytes breaks its connection or
/// takes longer than it may, and at 1 GB Postgres refuses it.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of a value besides its characters, about.
const OF_ANY_VALUE: usize = 8;
/// How often a batch is written while the database seems to be away, before it is halved: it may be the batch that breaks
/// its connection.
const TRIES: u8 = 2;
/// A claim of more is recorded without others and if possible at once, which costs the database a third of what its parts
/// cost: see `bus.complete_many`.
const ENOUGH: usize = 64;
/// How long the rest of a large claim is waited for, as long as that brings as many as are [`ENOUGH`].
const GATHER: Duration = Duration::from_millis(2);

/// What has ended and waits to be recorded with others. Each of it is still in hand, so its lease is kept, and a worker that
/// has as much of it as it has hands claims nothing: that bounds it.
#[derive(Default)]
pub(crate) struct Settler {
    waiting: Mutex<Vec<Ended>>,
    came: Notify,
}

/// What one claim took.
pub(crate) struct Portion {
    size: usize,
    /// Those whose handlers have not ended.
    left: AtomicUsize,
}

impl Portion {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, left: AtomicUsize::new(size) }
    }

    /// One of it has ended; answers whether it was the last.
    pub(crate) fn end_one(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether the database ends it best by itself, and all at once.
    fn is_large(&self) -> bool {
        self.size > ENOUGH
    }

    fn is_whole(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

/// How a message ended that needs no statement of its own.
pub(crate) enum Order {
    /// With a completion that sends nothing.
    Complete(Completion),
    Fail(Failure),
}

impl Order {
    /// Bytes that it adds to a statement, about: to count them costs far less than to write them.
    fn bytes(&self) -> usize {
        match self {
            Self::Complete(completion) => {
                let texts = [&completion.snippet, &completion.result_url];
                let of_texts: usize = texts.into_iter().flatten().map(String::len).sum();
                completion.result.as_ref().map_or(0, bytes) + of_texts
            }
            Self::Fail(failure) => failure.reason.len(),
        }
    }
}

fn bytes(value: &Value) -> usize {
    let of_content: usize = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes(value)).sum(),
    };
    OF_ANY_VALUE + of_content
}

/// A message whose handler has ended.
pub(crate) struct Ended {
    claim: Claim,
    order: Order,
    portion: Arc<Portion>,
    started: Instant,
    /// What it adds to a statement, about.
    bytes: usize,
}

impl Ended {
    pub(crate) fn new(claim: Claim, order: Order, portion: Arc<Portion>, started: Instant) -> Self {
        let bytes = order.bytes();
        Self { claim, order, portion, started, bytes }
    }

    /// Whether one statement shall end both in one way: of a large claim, or of small ones. There is more than one holder
    /// only around a rejoining.
    fn goes_with(&self, other: &Self) -> bool {
        let are_alike = std::mem::discriminant(&self.order) == std::mem::discriminant(&other.order);
        let are_of_one = Arc::ptr_eq(&self.portion, &other.portion);
        let are_small = !self.portion.is_large() && !other.portion.is_large();
        are_alike && (are_of_one || (are_small && self.claim.holder() == other.claim.holder()))
    }
}

/// What is recorded next; one of the two is empty.
#[derive(Default)]
struct Next {
    completions: Batch<Completion>,
    failures: Batch<Failure>,
}

impl Settler {
    pub(crate) fn add(&self, ended: Ended) {
        let is_last = ended.portion.end_one();
        let mut waiting = self.lock();
        let is_first = waiting.is_empty();
        waiting.push(ended);
        drop(waiting);
        if is_first || is_last {
            self.came.notify_one();
        }
    }

    /// Waits for the first, and where it is of a large claim for the others that are about to end as well.
    async fn some(&self) {
        let mut seen = 0;
        loop {
            let size = {
                let waiting = self.lock();
                match waiting.first() {
                    Some(first) if !first.portion.is_large() || first.portion.is_whole() => return,
                    _ => waiting.len(),
                }
            };
            if size == 0 {
                self.came.notified().await;
            } else if tokio::time::timeout(GATHER, self.came.notified()).await.is_err() {
                let now = self.lock().len();
                if now < seen + ENOUGH {
                    return;
                }
                seen = now;
            }
        }
    }

    fn next(&self) -> Option<Next> {
        let mut waiting = self.lock();
        let first = (!waiting.is_empty()).then(|| waiting.remove(0))?;
        let mut bytes = first.bytes;
        let fits = |other: &mut Ended| {
            let fits = first.goes_with(other) && bytes.saturating_add(other.bytes) <= BATCH_BYTES;
            bytes += if fits { other.bytes } else { 0 };
            fits
        };
        let others: Vec<Ended> = waiting.extract_if(.., fits).take(BATCH - 1).collect();
        drop(waiting);
        let mut next = Next::default();
        for Ended { claim, order, started, .. } in std::iter::once(first).chain(others) {
            match order {
                Order::Complete(completion) => next.completions.push(claim, completion, started),
                Order::Fail(failure) => next.failures.push(claim, failure, started),
            }
        }
        Some(next)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Ended>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Handler> Attempts<H> {
    /// Records what is done until `stop`.
    pub(crate) async fn settle(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.settler.some() => {}
            }
            if let Some(next) = self.settler.next() {
                self.write_batch(next.completions).await;
                self.write_batch(next.failures).await;
            }
        }
    }

    /// Writes a batch, again and again while the database is away. One that it refuses, or that is not taken twice in a row,
    /// is halved until what is not taken stands alone, and that goes the way of single ends: nothing waits for it.
    async fn write_batch<E: Gathered>(self: &Arc<Self>, batch: Batch<E>) {
        self.leases.leave_to_their_ends(&batch.ends);
        let mut pause = WRITE_AGAIN.0;
        // in turn, so that the halves of one that is taken nowhere do not keep the other half waiting
        let mut batches = VecDeque::from([batch]);
        while let Some(batch) = batches.pop_front() {
            let refused = self.write_whole(batch, &mut pause).await;
            let Some((batch, error)) = refused else { continue };
            debug!(%error, size = batch.len(), "batch of ends refused");
            if batch.len() > 1 {
                batches.extend(batch.into_halves());
                continue;
            }
            for ((_, end), (claim, started)) in batch.ends.into_iter().zip(batch.claims) {
                let attempts = Arc::clone(self);
                self.tracker.spawn(async move { attempts.record(&claim, end.into_end(), started).await });
            }
        }
    }

    /// Answers what the database refuses for a reason of its own, or does not take in as many tries as a batch has.
    async fn write_whole<E: Gathered>(&self, mut batch: Batch<E>, pause: &mut Duration) -> Option<(Batch<E>, Error)> {
        let mut tries = 0;
        loop {
            let holder = batch.claims.first().map(|(claim, _)| claim.holder())?;
            let asked = Instant::now();
            let written = tokio::select! {
                written = in_time(self.patience, E::write(&self.bus, &batch.ends, holder)) => written,
                () = self.last_chance() => Err(silent()),
            };
            match written {
                Ok(recorded) => {
                    self.metrics.settled(asked.elapsed());
                    self.ended(&batch, &recorded);
                    *pause = WRITE_AGAIN.0;
                    return None;
                }
                Err(error) if error.is_passing() => {
                    warn!(
                        error = error.source().map(tracing::field::display),
                        size = batch.len(),
                        "ends not written yet"
                    );
                    tries += 1;
                    batch = self.still_ours_of(batch, *pause).await;
                    *pause = (*pause * 2).min(WRITE_AGAIN.1);
                    if tries >= TRIES {
                        return Some((batch, error));
                    }
                }
                Err(error) => return Some((batch, error)),
            }
        }
    }

    /// Waits, and answers what may still be written; the rest has ended otherwise.
    async fn still_ours_of<E: Gathered>(&self, batch: Batch<E>, pause: Duration) -> Batch<E> {
        tokio::select! {
            () = self.hard_stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let (now, is_over) = (Instant::now(), self.hard_stop.is_cancelled());
        let (ours, others) = batch.partition(|claim| {
            let owned = self.leases.owned_until(&claim.claimed().fence());
            let last = owned.map(|owned| claim.deadline().map_or(owned, |deadline| deadline.min(owned)));
            !is_over && !claim.token().is_cancelled() && last.is_some_and(|last| now < last)
        });
        if others.len() > 0 {
            warn!(count = others.len(), "ends not written, and not ours to write any more");
            self.ended(&others, &Recorded::nothing());
        }
        ours
    }

    /// Notes the ends of a batch.
    fn ended<E: Gathered>(&self, batch: &Batch<E>, recorded: &Recorded) {
        if E::IS_SUCCESS {
            self.brake.worked();
        }
        self.forget(batch.ends.iter().map(|(fence, _)| fence));
        for ((fence, end), (claim, started)) in batch.ends.iter().zip(&batch.claims) {
            let (id, outcome) = (fence.id, recorded.of(fence.id));
            match end.reason() {
                None => debug!(outcome = outcome.as_str(), "message {id} handled"),
                Some(error) => {
                    let task = claim.claimed().root_id;
                    warn!(task.id = %task, tenant = claim.claimed().tenant, outcome = outcome.as_str(), error, "message {id} failed");
                }
            }
            self.metrics.processed(outcome, started.elapsed());
        }
    }

    /// What has ended is no longer in hand.
    pub(crate) fn forget<'f>(&self, fences: impl IntoIterator<Item = &'f Fence>) {
        self.leases.remove(fences);
        self.hands.tell();
    }

    /// Passes when the hard stop is so far back that nothing is waited for.
    pub(crate) async fn last_chance(&self) {
        self.hard_stop.cancelled().await;
        tokio::time::sleep(LAST_WRITE).await;
    }
}
