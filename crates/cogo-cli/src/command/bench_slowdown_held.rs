//! A transaction that stays open with its snapshot: what cannot be cleaned up meanwhile, and what that costs over time.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool, postgres::PgConnectOptions};

use crate::{
    command::{
        bench_bus_report::rounded,
        bench_slowdown_measure::{Empty, Figures, Measured, Pace, Place, pair, tenant},
    },
    failure::Failure,
    output::Output,
};

/// Shown in `pg_stat_activity` for the transaction.
const NAME: &str = "cogo-bench-held";
/// Whole measurements over the time; between them single messages go on.
pub(crate) const MEASUREMENTS: u32 = 20;
/// Single messages on each side between two looks at the clock.
const MOST_STEPS_BETWEEN: u32 = 100;

/// A look at both sides, some time after the transaction was opened.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Moment {
    /// Seconds; 0 is the one before it was opened, the last one follows its end and a vacuum.
    pub(crate) at_s: f64,
    pub(crate) is_held: bool,
    #[serde(flatten)]
    pub(crate) left: Left,
    pub(crate) empty: Figures,
    pub(crate) under: Figures,
}

/// What a vacuum right after the measurement had to leave behind, on the side of the transaction.
#[derive(Debug, Clone, Copy, Serialize, sqlx::FromRow)]
pub(crate) struct Left {
    pub(crate) dead_in_ready: i64,
    pub(crate) dead_in_claims: i64,
    pub(crate) dead_messages: i64,
    /// Bytes with the indexes, as is the next.
    pub(crate) ready_bytes: i64,
    pub(crate) claims_bytes: i64,
}

/// Everything about one such transaction.
#[derive(Debug)]
pub(crate) struct Course {
    /// Sessions with a snapshot, counted while it was open.
    pub(crate) counted: i64,
    pub(crate) moments: Vec<Moment>,
    pub(crate) lost: u64,
}

impl Course {
    /// The pairs by which it is judged: the last ones while it was open.
    pub(crate) fn last_held(&self, runs: u16) -> impl Iterator<Item = &Moment> {
        self.moments.iter().rev().filter(|moment| moment.is_held).take(usize::from(runs))
    }
}

/// Measures both sides before, all along and after a transaction on the one.
pub(crate) async fn examine(
    empty: &Place,
    under: &Place,
    under_url: &str,
    pace: Pace,
    held: Duration,
    output: Output,
) -> Result<Course, Failure> {
    let mut course = Course { counted: 0, moments: Vec::new(), lost: 0 };
    course.add(empty, under, pace, 0.0, false).await?;

    let mut transaction = open(under_url).await?;
    course.counted = count(&under.pool).await?;
    let began = Instant::now();
    let mut made = 0;
    while began.elapsed() < held || made < u32::from(pace.runs) {
        // evenly over the time, and as many as are wanted however short it is
        if began.elapsed() >= held * made / MEASUREMENTS || began.elapsed() >= held {
            course.add(empty, under, pace, began.elapsed().as_secs_f64(), true).await?;
            made += 1;
            if let Some(moment) = course.moments.last() {
                output.note(&moment.summary());
            }
            continue;
        }
        let tenant = tenant("default")?;
        for place in [empty, under] {
            place.steps(pace.steps.min(MOST_STEPS_BETWEEN), &tenant, Empty::Claimed).await?;
        }
    }
    // it must have been there until now: a server may end transactions that do nothing
    sqlx::query("commit").execute(&mut transaction).await?;
    transaction.close().await?;
    vacuum(&under.pool).await?;
    course.add(empty, under, pace, began.elapsed().as_secs_f64(), false).await?;
    Ok(course)
}

impl Course {
    async fn add(&mut self, empty: &Place, under: &Place, pace: Pace, at_s: f64, is_held: bool) -> Result<(), Failure> {
        for place in [empty, under] {
            vacuum(&place.pool).await?;
        }
        let [of_empty, of_under] = pair(empty, under, pace, self.moments.len().is_multiple_of(2)).await?;
        // what one more vacuum leaves is what these figures were measured beside
        vacuum(&under.pool).await?;
        let left = left(&under.pool).await?;
        let Measured { figures: of_empty, lost } = of_empty;
        self.lost += lost + of_under.lost;
        self.moments.push(Moment { at_s: rounded(at_s), is_held, left, empty: of_empty, under: of_under.figures });
        Ok(())
    }
}

impl Moment {
    fn summary(&self) -> String {
        let of = |name: &str| {
            let figure =
                |figures: &Figures| figures.get(name).map_or_else(|| "-".to_owned(), |one| format!("{one:.2}"));
            format!("{} (without {})", figure(&self.under), figure(&self.empty))
        };
        format!(
            "{:.0} s: {} dead rows in bus.ready, {} in bus.claims; claim {} ms, {} pages; empty claim {} pages",
            self.at_s,
            self.left.dead_in_ready,
            self.left.dead_in_claims,
            of("claim_p50_ms"),
            of("claim_pages"),
            of("empty_claim_pages"),
        )
    }
}

async fn open(url: &str) -> Result<PgConnection, Failure> {
    let options = url.parse::<PgConnectOptions>()?.application_name(NAME);
    let mut connection = PgConnection::connect_with(&options).await?;
    for statement in [
        "set idle_in_transaction_session_timeout = 0",
        "begin isolation level repeatable read",
        // the first statement takes the snapshot
        "select count(*) from bus.ready",
    ] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    Ok(connection)
}

/// Whether it is there: in a transaction, with a snapshot that holds back the cleaning up.
async fn count(pool: &PgPool) -> Result<i64, Failure> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity a
          where a.datname = current_database() and a.application_name = $1 and a.state = 'idle in transaction'
            and a.backend_xmin is not null",
    )
    .bind(NAME)
    .fetch_one(pool)
    .await?;
    if count == 1 {
        return Ok(count);
    }
    Err(Failure::failed("The transaction that was to be held open is not there"))
}

/// Autovacuum comes once a minute; so that it makes no difference when, each measurement begins with one.
async fn vacuum(pool: &PgPool) -> Result<(), Failure> {
    sqlx::query("vacuum bus.ready, bus.claims, public.agent_messages").execute(pool).await?;
    Ok(())
}

async fn left(pool: &PgPool) -> Result<Left, Failure> {
    let left = sqlx::query_as(
        "select pg_stat_get_dead_tuples('bus.ready'::regclass) as dead_in_ready,
                pg_stat_get_dead_tuples('bus.claims'::regclass) as dead_in_claims,
                (select sum(pg_stat_get_dead_tuples(p.relid))::bigint
                   from pg_partition_tree('public.agent_messages') p where p.isleaf) as dead_messages,
                pg_total_relation_size('bus.ready'::regclass) as ready_bytes,
                pg_total_relation_size('bus.claims'::regclass) as claims_bytes",
    );
    Ok(left.fetch_one(pool).await?)
}
