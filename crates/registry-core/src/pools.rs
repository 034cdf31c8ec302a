//! Pools of processes: one owner at a time says how many there shall be, and every decision is a row.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgExecutor, PgPool, types::Json};

use crate::Error;

/// The pools on a database.
#[derive(Debug, Clone)]
pub struct Pools {
    pool: PgPool,
}

/// The wish to decide about a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolClaim {
    /// Name of the process.
    pub process: String,
    /// Who wants to decide: a name that no other run has.
    pub owner: String,
    /// For how long, unless renewed; from 1 s to 10 min.
    pub lease: Duration,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// How many a new pool begins with.
    pub start: u32,
}

/// Who decides about a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever asked.
    Mine {
        /// Fences decisions: those of an earlier epoch are refused.
        epoch: i64,
        /// How many there shall be.
        desired: u32,
    },
    /// Somebody else.
    Theirs {
        /// Its name.
        owner: String,
        /// How many there shall be.
        desired: u32,
        /// When to ask again, should it not renew.
        lease_left: Duration,
    },
}

/// What came of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It holds and was written down.
    Recorded {
        /// Key of its row.
        decision_id: i64,
    },
    /// Somebody else decides now; nothing was written.
    NotOwner,
    /// The count had been changed meanwhile; nothing was written.
    Changed {
        /// How many there shall be.
        desired: u32,
    },
}

/// One pool, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct PoolState {
    /// Name of the process.
    pub process: String,
    /// Never fewer.
    pub min_count: i32,
    /// Never more.
    pub max_count: i32,
    /// How many there shall be.
    pub desired: i32,
    /// Who decides; none if nobody does.
    pub owner: Option<String>,
    /// How often that has changed.
    pub epoch: i64,
    /// What is left of the lease, in milliseconds; negative when it is over.
    pub lease_left_ms: Option<i64>,
    /// When the desired count last changed.
    pub decided_at: Option<DateTime<Utc>>,
}

/// One decision, for people.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct ScalingDecision {
    /// Order of writing.
    pub id: i64,
    /// When, by the database clock.
    pub at: DateTime<Utc>,
    /// The pool.
    pub process: String,
    /// Who decided.
    pub decided_by: String,
    /// The desired count before.
    pub from_count: i32,
    /// The desired count after.
    pub to_count: i32,
    /// The count that was wanted before limits.
    pub wanted: i32,
    /// The decision in words.
    pub sentence: String,
    /// The figures that were known.
    pub inputs: Value,
    /// Everything that spoke for a count.
    pub candidates: Value,
    /// What lay between wanted and done.
    pub limits: Value,
}

#[derive(sqlx::FromRow)]
struct OwnRow {
    process: String,
    owned: bool,
    owner_now: String,
    epoch: i64,
    desired: i32,
    lease_left_ms: i64,
}

impl OwnRow {
    fn told(self) -> (String, Ownership) {
        let desired = to_count(self.desired);
        let ownership = if self.owned {
            Ownership::Mine { epoch: self.epoch, desired }
        } else {
            let lease_left = Duration::from_millis(u64::try_from(self.lease_left_ms).unwrap_or(0));
            Ownership::Theirs { owner: self.owner_now, desired, lease_left }
        };
        (self.process, ownership)
    }
}

impl Pools {
    /// The pools of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Takes or renews the right to decide, and sets the bounds of the pool if it has it.
    ///
    /// # Errors
    /// [`Error::Database`], also for bounds that contradict each other and for a lease out of its range.
    pub async fn own(&self, claim: &PoolClaim) -> Result<Ownership, Error> {
        let mut owned = Self::own_all(&self.pool, &[claim]).await?;
        owned.pop().map(|(_process, ownership)| ownership).ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// The same for many at once, by a connection of the caller's; answers by the name of the process. It is done for all
    /// of them or for none.
    ///
    /// # Errors
    /// As [`own`](Self::own).
    pub async fn own_all(
        executor: impl PgExecutor<'_>,
        claims: &[&PoolClaim],
    ) -> Result<Vec<(String, Ownership)>, Error> {
        let counts = |of: fn(&PoolClaim) -> u32| claims.iter().map(|claim| to_integer(of(claim))).collect::<Vec<_>>();
        let lease_ms = |claim: &&PoolClaim| i64::try_from(claim.lease.as_millis()).unwrap_or(i64::MAX);
        // in the order of their names: two who want the same ones must not wait for each other
        let rows: Vec<OwnRow> = sqlx::query_as(
            "
            select c.process, o.owned, o.owner_now, o.epoch, o.desired, o.lease_left_ms
              from (select * from unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::integer[], $6::integer[])
                             as w (process, owner, lease_ms, min_count, max_count, start_count)
                     order by w.process) as c
             cross join lateral registry.own_pool(
                process => c.process, owner => c.owner, lease => c.lease_ms * interval '1 millisecond',
                min_count => c.min_count, max_count => c.max_count, start_count => c.start_count) as o
            ",
        )
        .bind(claims.iter().map(|claim| claim.process.as_str()).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.owner.as_str()).collect::<Vec<_>>())
        .bind(claims.iter().map(lease_ms).collect::<Vec<_>>())
        .bind(counts(|claim| claim.min))
        .bind(counts(|claim| claim.max))
        .bind(counts(|claim| claim.start))
        .fetch_all(executor)
        .await
        .map_err(Error::Database)?;
        Ok(rows.into_iter().map(OwnRow::told).collect())
    }

    /// Sets the desired count from one number to another and writes down why; the same number twice only writes it down.
    /// `decision` holds `wanted`, `sentence`, `inputs`, `candidates` and `limits`.
    ///
    /// # Errors
    /// [`Error::Database`], also for a count out of the bounds and for a decision without a sentence.
    pub async fn decide(
        &self,
        claim: &PoolClaim,
        epoch: i64,
        from: u32,
        to: u32,
        decision: &impl Serialize,
    ) -> Result<Decided, Error> {
        let (outcome, desired, decision_id): (String, Option<i32>, Option<i64>) = sqlx::query_as(
            "
            select d.outcome, d.desired, d.decision_id
              from registry.decide_pool(
                process => $1, owner => $2, epoch => $3, from_count => $4, to_count => $5, decision => $6) as d
            ",
        )
        .bind(&claim.process)
        .bind(&claim.owner)
        .bind(epoch)
        .bind(to_integer(from))
        .bind(to_integer(to))
        .bind(Json(decision))
        .fetch_one(&self.pool)
        .await
        .map_err(Error::Database)?;
        Ok(match (outcome.as_str(), decision_id) {
            ("recorded", Some(decision_id)) => Decided::Recorded { decision_id },
            ("changed", _) => Decided::Changed { desired: desired.map_or(0, to_count) },
            // a pool that is not known has no owner either
            _ => Decided::NotOwner,
        })
    }

    /// Gives up the right to decide; false if it was lost before.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn release(&self, claim: &PoolClaim, epoch: i64) -> Result<bool, Error> {
        sqlx::query_scalar("select registry.release_pool($1, $2, $3)")
            .bind(&claim.process)
            .bind(&claim.owner)
            .bind(epoch)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::Database)
    }

    /// Every pool, by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self) -> Result<Vec<PoolState>, Error> {
        sqlx::query_as(
            "
            select p.process, p.min_count, p.max_count, p.desired, p.owner, p.epoch, p.decided_at,
                   (extract(epoch from p.lease_until - clock_timestamp()) * 1000)::bigint as lease_left_ms
              from registry.pools p
             order by p.process
            ",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::Database)
    }

    /// The last decisions about a pool, newest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn decisions(&self, process: &str, limit: u32) -> Result<Vec<ScalingDecision>, Error> {
        sqlx::query_as(
            "
            select d.id, d.at, d.process, d.decided_by, d.from_count, d.to_count, d.wanted, d.sentence, d.inputs,
                   d.candidates, d.limits
              from registry.scaling_decisions d
             where d.process = $1
             order by d.id desc
             limit $2
            ",
        )
        .bind(process)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(Error::Database)
    }

    /// Forgets decisions older than this; answers how many went.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn retain_decisions(&self, keep: Duration, max_rows: u32) -> Result<i32, Error> {
        sqlx::query_scalar("select registry.retain_scaling_decisions($1 * interval '1 millisecond', $2)")
            .bind(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX))
            .bind(to_integer(max_rows))
            .fetch_one(&self.pool)
            .await
            .map_err(Error::Database)
    }
}

/// Postgres has no unsigned numbers; what does not fit is refused there by the bounds.
fn to_integer(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The table holds counts from 0 to 65535.
fn to_count(integer: i32) -> u32 {
    u32::try_from(integer).unwrap_or(0)
}
