//! Small values that agents share, with a time to live and compare-and-set, and a copy of some of them in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::PgPool;

/// Values kept in memory; beyond that the oldest half is dropped.
const MOST_KEPT: usize = 4096;

/// A value and the version to compare by.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The value.
    pub value: Value,
    /// New with every write, and never used again.
    pub version: i64,
    /// How long it still held when it was read; none: for ever.
    pub remaining: Option<Duration>,
}

/// The values of one namespace, usually that of a domain.
#[derive(Debug, Clone)]
pub struct Kv {
    pool: PgPool,
    namespace: Arc<str>,
    kept: Arc<Mutex<HashMap<String, Known>>>,
}

/// What was answered, and when it was asked for.
type Known = (Instant, Option<Held>);

impl Kv {
    /// The values of a namespace, `[a-z][a-z0-9-]{0,62}`.
    #[must_use]
    pub fn new(pool: PgPool, namespace: &str) -> Self {
        Self { pool, namespace: namespace.into(), kept: Arc::default() }
    }

    /// The value of a key as the database has it now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get(&self, key: &str) -> Result<Option<Held>, sqlx::Error> {
        let asked = Instant::now();
        let row: Option<(Value, i64, Option<i64>)> =
            sqlx::query_as("select k.value, k.version, k.remaining_ms from registry.kv_get($1, $2) as k")
                .bind(&*self.namespace)
                .bind(key)
                .fetch_optional(&self.pool)
                .await?;
        let held = row.map(|(value, version, remaining)| Held {
            value,
            version,
            remaining: remaining.map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        });
        self.keep(key, asked, held.clone());
        Ok(held)
    }

    /// The value of a key as it was at most `max_age` ago, from memory if that has it. Never one whose time is over.
    ///
    /// # Errors
    /// When the database has to be asked and does not answer.
    pub async fn get_within(&self, key: &str, max_age: Duration) -> Result<Option<Held>, sqlx::Error> {
        match self.kept(key, max_age) {
            Some(held) => Ok(held),
            None => self.get(key).await,
        }
    }

    /// Writes a value, whatever was there; answers its version. Without `ttl` it holds for ever.
    ///
    /// # Errors
    /// When the database does not answer, or refuses key, value (256 KiB at most) or a `ttl` below 1 ms.
    pub async fn put(&self, key: &str, value: &Value, ttl: Option<Duration>) -> Result<i64, sqlx::Error> {
        let written = self.write(key, value, ttl, None).await?;
        written.ok_or(sqlx::Error::RowNotFound)
    }

    /// Writes a value only if none is there; answers its version, none if there was one.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn put_new(&self, key: &str, value: &Value, ttl: Option<Duration>) -> Result<Option<i64>, sqlx::Error> {
        self.write(key, value, ttl, Some(0)).await
    }

    /// Writes a value only over that version of it; answers the new one, none if it is another or gone.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn compare_and_set(
        &self,
        key: &str,
        version: i64,
        value: &Value,
        ttl: Option<Duration>,
    ) -> Result<Option<i64>, sqlx::Error> {
        self.write(key, value, ttl, Some(version)).await
    }

    /// Removes a value, or only that version of it; false if there was none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete(&self, key: &str, version: Option<i64>) -> Result<bool, sqlx::Error> {
        self.forget(key);
        sqlx::query_scalar("select registry.kv_delete($1, $2, $3)")
            .bind(&*self.namespace)
            .bind(key)
            .bind(version)
            .fetch_one(&self.pool)
            .await
    }

    /// Removes up to `most` rows of any namespace whose time is over; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sweep(&self, most: i32) -> Result<i32, sqlx::Error> {
        sqlx::query_scalar("select registry.kv_sweep($1)").bind(most).fetch_one(&self.pool).await
    }

    async fn write(
        &self,
        key: &str,
        value: &Value,
        ttl: Option<Duration>,
        expected: Option<i64>,
    ) -> Result<Option<i64>, sqlx::Error> {
        self.forget(key);
        sqlx::query_scalar("select registry.kv_put($1, $2, $3, $4, $5)")
            .bind(&*self.namespace)
            .bind(key)
            .bind(value)
            .bind(ttl.map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
            .bind(expected)
            .fetch_one(&self.pool)
            .await
    }

    fn kept(&self, key: &str, max_age: Duration) -> Option<Option<Held>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, held) = kept.get(key)?;
        let age = asked.elapsed();
        let holds = held.as_ref().and_then(|held| held.remaining).is_none_or(|remaining| age < remaining);
        (age <= max_age && holds).then(|| held.clone())
    }

    fn keep(&self, key: &str, asked: Instant, held: Option<Held>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            let mut times: Vec<Instant> = kept.values().map(|(asked, _)| *asked).collect();
            let (_, middle, _) = times.select_nth_unstable(MOST_KEPT / 2);
            let middle = *middle;
            kept.retain(|_, (asked, _)| *asked > middle);
        }
        // an answer that was overtaken by a later question must not come back
        if kept.get(key).is_none_or(|(known, _)| *known <= asked) {
            kept.insert(key.to_owned(), (asked, held));
        }
    }

    fn forget(&self, key: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
