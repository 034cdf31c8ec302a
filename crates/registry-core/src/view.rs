//! Lookups in the copy of the registry in memory: each answer says how old it is, and one that is too old is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use chrono::{DateTime, Utc};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::{entry::Entry, query::Query, selection, snapshot::Snapshot};

/// How a process follows the registry.
#[derive(Debug, Clone)]
pub struct ViewSettings {
    /// Lookups are refused when the copy has not been confirmed for longer than this.
    pub max_staleness: Duration,
    /// The copy is confirmed at least this often, by a question of its own unless a beat has done it.
    pub confirm_every: Duration,
    /// How old the loads may be by which agents are chosen; they are read only while somebody chooses.
    pub load_every: Duration,
    /// First and longest pause before a broken connection is opened again.
    pub reconnect: (Duration, Duration),
    /// How long the database may take for one answer while the copy is read anew.
    pub deadline: Duration,
    /// How long it may take to tell what is new over a line that worked before. With `confirm_every` and the first pause it
    /// must leave time to read anew within `max_staleness`, or a line that dies silently makes lookups fail.
    pub confirm_within: Duration,
    /// More changes than this at once are not gone through one by one: the whole registry is read instead.
    pub most_changes: u32,
}

impl Default for ViewSettings {
    /// Refuses after 10 s, which is two beats; confirms every 6 s, which is a little more than a beat.
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_secs(10),
            confirm_every: Duration::from_secs(6),
            load_every: Duration::from_secs(5),
            reconnect: (Duration::from_millis(200), Duration::from_secs(5)),
            deadline: Duration::from_secs(4),
            confirm_within: Duration::from_secs(2),
            most_changes: 5000,
        }
    }
}

/// An answer and how far it can be trusted.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// What was asked for.
    pub value: T,
    /// Version of the registry that it is true for.
    pub version: i64,
    /// How long ago that version was still the newest.
    pub age: Duration,
}

/// The copy is too old to answer from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The copy of the registry is too old to answer from (version {version}, age {age:?}, limit {limit:?})")]
pub struct Stale {
    /// Version of the copy, 0 before the first.
    pub version: i64,
    /// How long ago it was confirmed; none before the first reading.
    pub age: Option<Duration>,
    /// What is allowed.
    pub limit: Duration,
}

/// A process's copy of the registry; clones are handles on the same one. Kept current by
/// [`Follower::run`](crate::Follower::run).
#[derive(Debug, Clone)]
pub struct View(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: ViewSettings,
    pub(crate) current: ArcSwap<Published>,
    pub(crate) version: watch::Sender<i64>,
    /// Newest version that somebody else, such as the heartbeat, has heard of.
    pub(crate) heard: Notify,
    pub(crate) loads_wanted: AtomicBool,
    /// Tells the follower of the first such wish since it last looked.
    pub(crate) load_wish: Notify,
    /// What the database's clock showed, and when; tokens are judged by it.
    database_time: ArcSwapOption<(DateTime<Utc>, Instant)>,
    /// What the next random choice is made from.
    dice: AtomicU64,
    origin: Instant,
}

/// A snapshot and when it was last known to be the newest.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) snapshot: Snapshot,
    /// Microseconds from the origin to the last confirmation; 0 before the first.
    confirmed: AtomicU64,
}

impl View {
    pub(crate) fn new(settings: ViewSettings) -> Self {
        let (seed, _) = Uuid::new_v4().as_u64_pair();
        Self(Arc::new(Shared {
            settings,
            current: ArcSwap::default(),
            version: watch::Sender::new(0),
            heard: Notify::new(),
            loads_wanted: AtomicBool::new(false),
            load_wish: Notify::new(),
            database_time: ArcSwapOption::empty(),
            dice: AtomicU64::new(seed),
            origin: Instant::now(),
        }))
    }

    /// The living owner of a slot (`name/slot`), whatever its state.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn resolve(&self, instance: &str) -> Result<Answer<Option<Arc<Entry>>>, Stale> {
        self.look(|snapshot| snapshot.owner(instance).cloned())
    }

    /// The living run of this id, whatever its state.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn resolve_run(&self, instance_id: Uuid) -> Result<Answer<Option<Arc<Entry>>>, Stale> {
        self.look(|snapshot| snapshot.run(instance_id).cloned())
    }

    /// The active agents that fit, in no particular order.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn discover(&self, query: &Query) -> Result<Answer<Vec<Arc<Entry>>>, Stale> {
        self.look(|snapshot| snapshot.matching(query).cloned().collect())
    }

    /// The active agents that fit and that are ready, as far as their last beats tell, in no particular order.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn find_healthy(&self, query: &Query) -> Result<Answer<Vec<Arc<Entry>>>, Stale> {
        self.want_loads();
        self.look(|snapshot| {
            let healthy = snapshot.fitting(query).filter(|entry| snapshot.is_healthy(entry));
            healthy.take(query.most()).cloned().collect()
        })
    }

    /// The healthy agent that has the least to do; counts the choice as work until the next look at the loads.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn least_loaded(&self, query: &Query) -> Result<Answer<Option<Arc<Entry>>>, Stale> {
        self.want_loads();
        self.look(|snapshot| selection::least_loaded(snapshot, query))
    }

    /// The less loaded of two healthy agents taken at random, which spreads work nearly as well as looking at all of
    /// them and costs the same for ten as for ten thousand.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn power_of_two(&self, query: &Query) -> Result<Answer<Option<Arc<Entry>>>, Stale> {
        self.want_loads();
        self.look(|snapshot| selection::power_of_two(snapshot, query, || self.roll()))
    }

    /// Any reading of the copy.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn look<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> Result<Answer<T>, Stale> {
        let published = self.0.current.load();
        let age = self.age_of(&published)?;
        Ok(Answer { value: read(&published.snapshot), version: published.snapshot.version(), age })
    }

    /// Version of the copy, 0 before the first reading, however old it is.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.0.current.load().snapshot.version()
    }

    /// Waits until the copy is at least at this version, so that a process can read what it wrote itself.
    pub async fn wait_for(&self, version: i64) {
        self.hurry();
        // the sender lives as long as this handle
        let _ = self.0.version.subscribe().wait_for(|now| *now >= version).await;
    }

    /// Says that the registry was at this version when it was asked at `asked`, as the answer to a beat tells. That
    /// confirms the copy, or makes it follow at once if it is behind.
    pub fn heard_of(&self, version: i64, asked: Instant) {
        let published = self.0.current.load();
        if version == published.snapshot.version() {
            published.confirm(self.0.micros(asked));
        } else if version > published.snapshot.version() {
            self.hurry();
        }
    }

    /// Makes the copy look for changes at once, as a hint that there may be some asks for.
    pub fn look_again(&self) {
        self.hurry();
    }

    /// What the database's clock shows, as far as that can be told without asking it; none before the first reading.
    #[must_use]
    pub fn database_now(&self) -> Option<DateTime<Utc>> {
        let shown = self.0.database_time.load();
        let (time, at) = shown.as_deref()?;
        Some(*time + chrono::TimeDelta::from_std(at.elapsed()).ok()?)
    }

    fn age_of(&self, published: &Published) -> Result<Duration, Stale> {
        let limit = self.0.settings.max_staleness;
        let confirmed = published.confirmed.load(Ordering::Acquire);
        let age = (confirmed > 0).then(|| self.0.origin.elapsed().saturating_sub(Duration::from_micros(confirmed)));
        age.filter(|age| *age <= limit).ok_or(Stale { version: published.snapshot.version(), age, limit })
    }

    fn hurry(&self) {
        self.0.heard.notify_one();
    }

    fn want_loads(&self) {
        // a load before the swap: lookups share the line of the cache as long as nobody writes to it
        if !self.0.loads_wanted.load(Ordering::Relaxed) && !self.0.loads_wanted.swap(true, Ordering::Relaxed) {
            self.0.load_wish.notify_one();
        }
    }

    /// The next number of a `SplitMix64` sequence (Steele, Lea and Flood 2014), which threads may share without waiting.
    fn roll(&self) -> u64 {
        let mut z = self.0.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Published {
    fn confirm(&self, micros: u64) {
        self.confirmed.fetch_max(micros, Ordering::Release);
    }
}

impl Shared {
    /// Puts a snapshot in the place of the current one, which is answered; it was the newest at `asked`.
    pub(crate) fn publish(&self, snapshot: Snapshot, asked: Instant) -> Arc<Published> {
        let version = snapshot.version();
        let published = Published { snapshot, confirmed: AtomicU64::new(self.micros(asked)) };
        let old = self.current.swap(Arc::new(published));
        self.version.send_replace(version);
        old
    }

    /// The current snapshot was still the newest at `asked`; called by the one who publishes.
    pub(crate) fn confirm(&self, asked: Instant) {
        self.current.load().confirm(self.micros(asked));
    }

    /// When the current snapshot was last known to be the newest; the origin before the first reading.
    pub(crate) fn confirmed(&self) -> Instant {
        self.origin + Duration::from_micros(self.current.load().confirmed.load(Ordering::Acquire))
    }

    /// The database's clock showed this after `asked`.
    pub(crate) fn saw_time(&self, shown: DateTime<Utc>, asked: Instant) {
        self.database_time.store(Some(Arc::new((shown, asked))));
    }

    fn micros(&self, at: Instant) -> u64 {
        // 1 at least, since 0 stands for never
        u64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_dies_silently_leaves_time_to_read_anew_before_lookups_are_refused() {
        let ViewSettings { max_staleness, confirm_every, confirm_within, reconnect, .. } = ViewSettings::default();
        let noticed_after = confirm_every + confirm_within + reconnect.0;
        assert!(noticed_after + Duration::from_secs(1) < max_staleness, "{noticed_after:?} of {max_staleness:?}");
    }
}
