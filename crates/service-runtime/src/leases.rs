//! Keeps the leases of everything a worker has in hand, in one statement per beat.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cogo_bus_core::{Bus, Fence};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::{patience::in_time, pulse::Pulse};

/// Extended three times per lease, so that two beats may fail.
const BEATS_PER_LEASE: u32 = 3;
/// Looks per lease for what is overdue.
const LOOKS_PER_LEASE: u32 = 10;
/// No timer ticks faster, whatever the lease.
const SHORTEST_TICK: Duration = Duration::from_millis(1);

/// What a worker has in hand: of each message the last attempt that it began. An earlier one, whose lease was lost, may still
/// be ending beside it, and whatever is told of that one means nothing for this.
#[derive(Default)]
pub(crate) struct Leases {
    held: Mutex<ById>,
    /// Somebody says that one of them was taken back.
    doubted: Notify,
}

/// Asked three times for each message, so the hash must be cheap.
type ById = HashMap<Uuid, Held, foldhash::fast::RandomState>;

struct Held {
    fence: Fence,
    holder: Arc<str>,
    token: Arc<CancellationToken>,
    until: Instant,
    /// Whether the next look shall tell if it is still ours.
    is_doubted: bool,
    /// Its end is being written, and the answer to that tells whether it was still ours.
    is_ending: bool,
}

impl Leases {
    /// Counts these as owned `until` then, which a lease is counted to from when its claim was asked for: nobody knows when
    /// the database answered.
    pub(crate) fn add(
        &self,
        claimed: impl Iterator<Item = (Fence, Arc<CancellationToken>)>,
        holder: &Arc<str>,
        until: Instant,
    ) {
        let mut held = self.lock();
        for (fence, token) in claimed {
            let holder = Arc::clone(holder);
            let entry = Held { fence, holder, token, until, is_doubted: false, is_ending: false };
            if let Some(earlier) = held.insert(entry.fence.id, entry) {
                earlier.token.cancel();
            }
        }
    }

    pub(crate) fn remove<'f>(&self, fences: impl IntoIterator<Item = &'f Fence>) {
        let mut held = self.lock();
        for fence in fences {
            if let Entry::Occupied(entry) = held.entry(fence.id)
                && entry.get().fence == *fence
            {
                entry.remove();
            }
        }
    }

    /// The ends of these are about to be written. An extension that no longer finds them tells nothing then.
    pub(crate) fn leave_to_their_ends<E>(&self, ends: &[(Fence, E)]) {
        let mut held = self.lock();
        for (fence, _) in ends {
            if let Some(entry) = held.get_mut(&fence.id).filter(|entry| entry.fence == *fence) {
                entry.is_ending = true;
            }
        }
    }

    /// Until when the worker may believe that it still owns the message.
    pub(crate) fn owned_until(&self, fence: &Fence) -> Option<Instant> {
        self.lock().get(&fence.id).filter(|held| held.fence == *fence).map(|held| held.until)
    }

    /// Somebody says that a message was taken back. Anybody can say so: whether it is true is asked of the database at once.
    pub(crate) fn doubt(&self, id: Uuid) {
        if let Some(held) = self.lock().get_mut(&id) {
            held.is_doubted = true;
            self.doubted.notify_one();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_doubted(&self, id: Uuid) -> bool {
        self.lock().get(&id).is_some_and(|held| held.is_doubted)
    }

    /// Fires the token of everything that was claimed under another name than `holder`, the one in force.
    pub(crate) fn cancel_unless_held_by(&self, holder: Option<&str>) {
        for held in self.lock().values().filter(|held| holder != Some(&*held.holder)) {
            held.token.cancel();
        }
    }

    pub(crate) fn ids(&self) -> Vec<Uuid> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Extends until `stop`; what the database no longer counts as ours, or says nothing about, is cancelled.
    pub(crate) async fn keep(&self, bus: &Bus, lease: Duration, pulse: &Pulse, stop: &CancellationToken) {
        let keeping = async { tokio::join!(self.extend_all(bus, lease, pulse), self.watch_overdue(lease)) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = keeping => {}
        }
        pulse.retire();
    }

    async fn extend_all(&self, bus: &Bus, lease: Duration, pulse: &Pulse) {
        let period = (lease / BEATS_PER_LEASE).max(SHORTEST_TICK);
        let mut beat = interval(period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_beat = tokio::select! {
                biased;
                _ = beat.tick() => true,
                () = self.doubted.notified() => false,
            };
            pulse.beat();
            for (holder, fences) in self.by_holder(is_beat) {
                let asked = Instant::now();
                match in_time(period, bus.extend(&fences, &holder, lease)).await {
                    Ok(kept) => self.renewed(&fences, &kept, asked + lease),
                    Err(error) => warn!(error = format!("{:#}", anyhow::Error::from(error)), "leases not extended"),
                }
            }
        }
    }

    /// Beside the extending, so that a database that says nothing cannot hold it up.
    async fn watch_overdue(&self, lease: Duration) {
        let mut look = interval((lease / LOOKS_PER_LEASE).max(SHORTEST_TICK));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.drop_overdue();
        }
    }

    /// All of them, or those that are in doubt.
    fn by_holder(&self, all: bool) -> HashMap<Arc<str>, Vec<Fence>> {
        let mut fences: HashMap<Arc<str>, Vec<Fence>> = HashMap::new();
        for held in self.lock().values_mut() {
            if !std::mem::take(&mut held.is_doubted) && !all {
                continue;
            }
            fences.entry(Arc::clone(&held.holder)).or_default().push(held.fence.clone());
        }
        fences
    }

    fn renewed(&self, asked: &[Fence], kept: &[Uuid], until: Instant) {
        let kept: HashSet<Uuid> = kept.iter().copied().collect();
        let mut held = self.lock();
        for fence in asked {
            let Some(entry) = held.get_mut(&fence.id).filter(|entry| entry.fence == *fence) else { continue };
            if kept.contains(&fence.id) {
                entry.until = until;
            } else if !entry.is_ending {
                warn!(message.id = %fence.id, "lease lost, dropping the work");
                entry.token.cancel();
            }
        }
    }

    fn drop_overdue(&self) {
        let now = Instant::now();
        for held in self.lock().values().filter(|held| held.until <= now && !held.token.is_cancelled()) {
            warn!(message.id = %held.fence.id, "lease ran out while the database was away, dropping the work");
            held.token.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ById> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
