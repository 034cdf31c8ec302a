//! The schemas that hold now, in the memory of a process, and payloads held against them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use cogo_contracts::{Direction, NewMessage, Route, SchemaSubject};
use serde_json::{Map, Value};
use sqlx::PgPool;
use tracing::debug;

use super::{compiled::Compiled, refusal::NotChecked, store};
use crate::registry::{Error, Registry};

/// The header by which a message names the version that its payload was checked against.
const HEADER: &str = "schema-version";
/// Three beats: longer without a confirmation, the database is asked before anything is judged.
const MAX_STALENESS: Duration = Duration::from_secs(15);
/// How long the database may take for one answer.
const DEADLINE: Duration = Duration::from_secs(4);
/// Older versions that are kept; a subject needs few of them.
const MOST_COMPILED: usize = 2048;

/// The schemas of the fleet in this process's memory; clones are handles on the same ones.
///
/// Without schemas a check costs a look into an empty map. It asks the database when it was not told for 15 s that what it
/// has is the newest, and for a version that it has not met; [`SchemaFollower`](super::SchemaFollower) keeps it told.
#[derive(Debug, Clone)]
pub struct SchemaRegistry(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: PgPool,
    loaded: ArcSwapOption<Loaded>,
    /// Versions that are no longer the newest, as messages on their way name them; they never change.
    older: Mutex<HashMap<(SchemaSubject, i32), Arc<Compiled>>>,
    /// One reading at a time.
    reading: tokio::sync::Mutex<()>,
    /// Microseconds from the origin to the end of the last reading that failed.
    failed: AtomicU64,
    max_staleness: Duration,
    origin: Instant,
}

/// What was the newest at one moment.
#[derive(Debug)]
struct Loaded {
    change: i64,
    subjects: HashMap<SchemaSubject, Newest>,
    /// Microseconds from the origin to the last confirmation.
    confirmed: AtomicU64,
}

#[derive(Debug)]
struct Newest {
    version: i32,
    digest: Vec<u8>,
    compiled: Arc<Compiled>,
}

impl SchemaRegistry {
    /// The schemas of the registry's database; nothing is read before the first check.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self::with_max_staleness(registry, MAX_STALENESS)
    }

    /// As [`new`](Self::new), asking the database when it was not told for so long that what is in memory is the newest.
    #[must_use]
    pub fn with_max_staleness(registry: &Registry, max_staleness: Duration) -> Self {
        Self(Arc::new(Shared {
            pool: registry.pool().clone(),
            loaded: ArcSwapOption::empty(),
            older: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            failed: AtomicU64::new(0),
            max_staleness,
            origin: Instant::now(),
        }))
    }

    /// Holds the payload of a message that is to be sent against the newest schema of its route; answers the version, none
    /// if the route has no schema.
    ///
    /// # Errors
    /// [`NotChecked::Refused`] with the places at which it does not fit; otherwise why it could not be checked.
    pub async fn check(&self, message: &NewMessage) -> Result<Option<i32>, NotChecked> {
        let loaded = self.current().await?;
        loaded.check(&message.route, Direction::Request, &message.payload)
    }

    /// As [`check`](Self::check), and writes the version into the message's headers, so that it is claimed as what it was
    /// sent as even if the schema changes in between.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn stamp(&self, message: &mut NewMessage) -> Result<(), NotChecked> {
        if let Some(version) = self.check(message).await? {
            message.headers.insert(HEADER.to_owned(), Value::from(version));
        }
        Ok(())
    }

    /// Holds a claimed payload against the version that its headers name, else against the newest. While the database does
    /// not answer it is judged by what is in memory, however old: work that was begun must not suffer from that.
    ///
    /// # Errors
    /// As [`check`](Self::check), and [`NotChecked::NoSuchVersion`].
    pub async fn check_claimed(
        &self,
        route: &Route,
        payload: &Value,
        headers: &Map<String, Value>,
    ) -> Result<(), NotChecked> {
        let loaded = self.at_hand().await?;
        if loaded.subjects.is_empty() {
            return Ok(());
        }
        let subject = SchemaSubject::new(route, Direction::Request);
        let Some(newest) = loaded.subjects.get(&subject) else { return Ok(()) };
        let Some(named) = headers.get(HEADER) else {
            return newest.compiled.check(&subject, newest.version, payload);
        };
        let unknown = || NotChecked::NoSuchVersion { subject: subject.clone(), version: named.to_string() };
        let version = named.as_i64().and_then(|version| i32::try_from(version).ok()).ok_or_else(unknown)?;
        if version == newest.version {
            return newest.compiled.check(&subject, version, payload);
        }
        match self.version(&subject, version).await.map_err(NotChecked::Unavailable)? {
            Some(compiled) => compiled.check(&subject, version, payload),
            None => Err(unknown()),
        }
    }

    /// Holds a result against the newest schema of its route; answers the version, none if there is no schema. As tolerant
    /// as [`check_claimed`](Self::check_claimed).
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn check_reply(&self, route: &Route, reply: &Value) -> Result<Option<i32>, NotChecked> {
        self.at_hand().await?.check(route, Direction::Reply, reply)
    }

    /// Counts the changes of schemas up to the one that is in memory; none before the first reading.
    #[must_use]
    pub fn change(&self) -> Option<i64> {
        self.0.loaded.load().as_ref().map(|loaded| loaded.change)
    }

    /// Reads what has changed since the last reading.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn refresh(&self) -> Result<(), Error> {
        let _reading = self.0.reading.lock().await;
        self.read().await
    }

    /// Says that `change` was the newest when that was asked for at `asked`; answers whether it is in memory.
    pub(super) fn heard_of(&self, change: i64, asked: Instant) -> bool {
        match self.0.loaded.load().as_ref() {
            Some(loaded) if loaded.change == change => {
                loaded.confirmed.fetch_max(self.micros(asked), Ordering::Release);
                true
            }
            Some(loaded) => loaded.change > change,
            None => false,
        }
    }

    /// What is in memory, if it was confirmed not too long ago.
    fn fresh(&self) -> Option<Arc<Loaded>> {
        let loaded = self.0.loaded.load_full()?;
        let age = self.micros(Instant::now()).saturating_sub(loaded.confirmed.load(Ordering::Acquire));
        (Duration::from_micros(age) <= self.0.max_staleness).then_some(loaded)
    }

    /// What is in memory, if it is fresh enough, else what the database has.
    async fn current(&self) -> Result<Arc<Loaded>, NotChecked> {
        if let Some(loaded) = self.fresh() {
            return Ok(loaded);
        }
        let asked = self.micros(Instant::now());
        let _reading = self.0.reading.lock().await;
        // somebody else may have read while this one waited, or have waited in vain for all
        if let Some(loaded) = self.fresh() {
            return Ok(loaded);
        }
        if self.0.failed.load(Ordering::Acquire) > asked {
            return Err(NotChecked::Unavailable(silent()));
        }
        self.read().await.map_err(NotChecked::Unavailable)?;
        self.0.loaded.load_full().ok_or_else(|| NotChecked::Unavailable(silent()))
    }

    /// What is in memory, refreshed if it is due and can be done.
    async fn at_hand(&self) -> Result<Arc<Loaded>, NotChecked> {
        if let Some(loaded) = self.fresh() {
            return Ok(loaded);
        }
        let Some(stale) = self.0.loaded.load_full() else { return self.current().await };
        // one of all that come now tries, the others do not wait for it
        let Ok(_reading) = self.0.reading.try_lock() else { return Ok(stale) };
        match self.read().await {
            Ok(()) => Ok(self.0.loaded.load_full().unwrap_or(stale)),
            Err(error) => {
                debug!(%error, "judging by schemas that may be old");
                Ok(stale)
            }
        }
    }

    /// Reads; the caller holds the lock.
    async fn read(&self) -> Result<(), Error> {
        let read = self.read_newest().await;
        if read.is_err() {
            self.0.failed.fetch_max(self.micros(Instant::now()), Ordering::Release);
        }
        read
    }

    async fn read_newest(&self) -> Result<(), Error> {
        let asked = Instant::now();
        let change = in_time(store::newest_change(&self.0.pool)).await?;
        let before = self.0.loaded.load_full();
        if before.as_ref().is_some_and(|loaded| loaded.change == change) {
            self.heard_of(change, asked);
            return Ok(());
        }
        let known: HashMap<&[u8], &Arc<Compiled>> = before
            .iter()
            .flat_map(|loaded| loaded.subjects.values())
            .map(|newest| (newest.digest.as_slice(), &newest.compiled))
            .collect();
        let digests: Vec<Vec<u8>> = known.keys().map(|digest| digest.to_vec()).collect();
        let (change, rows) = in_time(store::newest(&self.0.pool, &digests)).await?;
        let mut subjects = HashMap::with_capacity(rows.len());
        for row in rows {
            let Some(subject) = row.subject() else { continue };
            let compiled = match row.document {
                Some(document) => Arc::new(Compiled::new(document.0)),
                None => {
                    Arc::clone(known.get(row.digest.as_slice()).expect("only what is known comes without document"))
                }
            };
            subjects.insert(subject, Newest { version: row.version, digest: row.digest, compiled });
        }
        let confirmed = AtomicU64::new(self.micros(asked));
        self.0.loaded.store(Some(Arc::new(Loaded { change, subjects, confirmed })));
        Ok(())
    }

    /// An older version, from memory or from the database.
    async fn version(&self, subject: &SchemaSubject, version: i32) -> Result<Option<Arc<Compiled>>, Error> {
        let key = (subject.clone(), version);
        if let Some(known) = self.older().get(&key) {
            return Ok(Some(Arc::clone(known)));
        }
        let found = in_time(store::versions(&self.0.pool, subject, version, version)).await?.pop();
        let compiled = found.map(|found| Arc::new(Compiled::new(found.document)));
        if let Some(compiled) = &compiled {
            let mut older = self.older();
            if older.len() >= MOST_COMPILED {
                older.clear();
            }
            older.insert(key, Arc::clone(compiled));
        }
        Ok(compiled)
    }

    fn older(&self) -> std::sync::MutexGuard<'_, HashMap<(SchemaSubject, i32), Arc<Compiled>>> {
        self.0.older.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0.origin).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Loaded {
    fn check(&self, route: &Route, direction: Direction, body: &Value) -> Result<Option<i32>, NotChecked> {
        if self.subjects.is_empty() {
            return Ok(None);
        }
        let subject = SchemaSubject::new(route, direction);
        let Some(newest) = self.subjects.get(&subject) else { return Ok(None) };
        newest.compiled.check(&subject, newest.version, body)?;
        Ok(Some(newest.version))
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(answer) => answer.map_err(Error::Database),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Error {
    Error::Database(sqlx::Error::PoolTimedOut)
}
