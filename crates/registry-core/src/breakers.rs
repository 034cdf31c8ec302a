//! Circuit breakers that several processes share: a small record each, which only ever goes forward.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::Error;

/// Somebody else may change a breaker at the same moment; more often than this in a row nobody is that unlucky.
const ATTEMPTS: u32 = 8;

/// Whether calls are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BreakerPhase {
    /// Until the record's time.
    Open,
    /// Not since somebody found it well again.
    Closed,
}

/// What processes share of a breaker. The greater record holds; the fields are in the order in which they count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BreakerRecord {
    /// How many openings there have been.
    pub round: u64,
    /// Whether this round's opening is over.
    pub phase: BreakerPhase,
    /// When the opening ends, in milliseconds of the database clock since 1970; 0 when closed.
    pub open_until_ms: u64,
    /// Openings in a row.
    pub openings: u32,
}

/// A breaker as the table has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedBreaker {
    /// What it is around.
    pub name: String,
    /// Counts its changes.
    pub version: i64,
    /// What is shared of it.
    pub record: BreakerRecord,
    /// Who changed it last.
    pub changed_by: String,
    /// Why.
    pub cause: String,
}

/// The breakers on a database.
#[derive(Debug, Clone)]
pub struct SharedBreakers {
    pool: PgPool,
}

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    version: i64,
    round: i64,
    phase: String,
    open_until_ms: i64,
    openings: i32,
    changed_by: String,
    cause: String,
}

#[derive(sqlx::FromRow)]
struct Answer {
    accepted: bool,
    version: i64,
    round_now: i64,
    phase_now: String,
    open_until_now_ms: i64,
    openings_now: i32,
    now_ms: i64,
}

/// A view of one breaker at one moment of the database clock.
struct Seen {
    version: i64,
    record: Option<BreakerRecord>,
    now_ms: u64,
}

impl SharedBreakers {
    /// The breakers of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Every breaker, by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self) -> Result<Vec<SharedBreaker>, Error> {
        let rows: Vec<Row> = sqlx::query_as(
            "
            select b.name, b.version, b.round, b.phase, registry.milliseconds(b.open_until) as open_until_ms, b.openings,
                   b.changed_by, b.cause
              from registry.breakers b
             order by b.name
            ",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::Database)?;
        Ok(rows.into_iter().map(SharedBreaker::from).collect())
    }

    /// Makes a breaker of this process and the shared one know the same. `exchange` is given the database's time in
    /// milliseconds and the shared record, takes it into the local breaker and answers what that one exports then; it
    /// may be asked again when others change the record meanwhile. Answers whether the shared record changed.
    ///
    /// # Errors
    /// [`Error::Database`]; the local breaker works on without the others.
    pub async fn exchange(
        &self,
        name: &str,
        by: &str,
        cause: &str,
        mut exchange: impl FnMut(u64, Option<BreakerRecord>) -> BreakerRecord,
    ) -> Result<bool, Error> {
        let mut seen = self.see(name).await?;
        for _ in 0..ATTEMPTS {
            let local = exchange(seen.now_ms, seen.record);
            let is_news = match seen.record {
                Some(shared) => local > shared,
                None => local.round > 0,
            };
            if !is_news {
                return Ok(false);
            }
            let answer = self.share(name, seen.version, local, by, cause).await?;
            if answer.accepted {
                return Ok(true);
            }
            seen = Seen::from(answer);
        }
        Ok(false)
    }

    async fn see(&self, name: &str) -> Result<Seen, Error> {
        // like the answer to a change, so that both are understood alike; version 0: there is no row
        let answer: Answer = sqlx::query_as(
            "
            select false as accepted, coalesce(b.version, 0) as version, coalesce(b.round, 0) as round_now,
                   coalesce(b.phase, 'closed') as phase_now, registry.milliseconds(b.open_until) as open_until_now_ms,
                   coalesce(b.openings, 0) as openings_now, registry.milliseconds(clock_timestamp()) as now_ms
              from (select $1::text as name) as asked
              left join registry.breakers b on b.name = asked.name
            ",
        )
        .bind(name)
        .fetch_one(&self.pool)
        .await
        .map_err(Error::Database)?;
        Ok(Seen::from(answer))
    }

    async fn share(
        &self,
        name: &str,
        expected_version: i64,
        record: BreakerRecord,
        by: &str,
        cause: &str,
    ) -> Result<Answer, Error> {
        let phase = match record.phase {
            BreakerPhase::Open => "open",
            BreakerPhase::Closed => "closed",
        };
        sqlx::query_as(
            "
            select s.accepted, s.version, s.round_now, s.phase_now, s.open_until_now_ms, s.openings_now, s.now_ms
              from registry.share_breaker(
                name => $1, expected_version => $2, round => $3, phase => $4, open_until_ms => $5, openings => $6,
                changed_by => $7, cause => $8) as s
            ",
        )
        .bind(name)
        .bind(expected_version)
        .bind(i64::try_from(record.round).unwrap_or(i64::MAX))
        .bind(phase)
        .bind(i64::try_from(record.open_until_ms).unwrap_or(i64::MAX))
        .bind(i32::try_from(record.openings).unwrap_or(i32::MAX))
        .bind(by)
        .bind(cause)
        .fetch_one(&self.pool)
        .await
        .map_err(Error::Database)
    }
}

impl From<Row> for SharedBreaker {
    fn from(row: Row) -> Self {
        let record = record(row.round, &row.phase, row.open_until_ms, row.openings);
        Self { name: row.name, version: row.version, record, changed_by: row.changed_by, cause: row.cause }
    }
}

impl From<Answer> for Seen {
    fn from(answer: Answer) -> Self {
        let known = record(answer.round_now, &answer.phase_now, answer.open_until_now_ms, answer.openings_now);
        let record = (answer.version > 0).then_some(known);
        Self { version: answer.version, record, now_ms: to_unsigned(answer.now_ms) }
    }
}

/// The checks of the table keep the numbers from being negative and the phase to two words.
fn record(round: i64, phase: &str, open_until_ms: i64, openings: i32) -> BreakerRecord {
    BreakerRecord {
        round: to_unsigned(round),
        phase: if phase == "open" { BreakerPhase::Open } else { BreakerPhase::Closed },
        open_until_ms: to_unsigned(open_until_ms),
        openings: u32::try_from(openings).unwrap_or(0),
    }
}

fn to_unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
