//! The circumstances that must not slow the bus down: how they are made, and the proof that they are there.

use std::time::Duration;

use clap::ValueEnum;
use cogo_bus_core::insert_finished;
use serde::Serialize;
use sqlx::PgPool;

use crate::{
    command::bench_bus_load::WORK,
    failure::{Failure, Kind},
    output::Output,
};

/// Messages on each of the many routes.
const ON_EACH_ROUTE: u32 = 10;
/// The first delayed message is due in a day, the others follow one by one.
const DELAY_MS: i64 = 86_400_000;
/// Messages of one statement that sends.
const SENT_AT_ONCE: usize = 1000;
/// Rows of one statement that inserts what is done; a transaction of seconds.
const INSERTED_AT_ONCE: usize = 250_000;

/// What may surround the messages that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Circumstance {
    /// Delayed messages on the same route.
    Delayed,
    /// Finished messages of the same route, yesterday's and today's.
    Finished,
    /// One tenant that sends 99 % of all.
    Tenant,
    /// A transaction with a snapshot that stays open.
    Held,
    /// Messages on many other routes, each with settings of its own.
    Routes,
}

impl Circumstance {
    pub(crate) const ALL: [Self; 5] = [Self::Delayed, Self::Finished, Self::Tenant, Self::Routes, Self::Held];

    /// For people.
    pub(crate) fn title(self, size: u64) -> String {
        match self {
            Self::Delayed => format!("{size} delayed messages ahead"),
            Self::Finished => format!("{size} finished messages"),
            Self::Tenant => format!("one tenant with {size} messages, 99 % of the load"),
            Self::Held => format!("a transaction held open for {size} s"),
            Self::Routes => format!("{size} distinct routes with messages"),
        }
    }
}

/// How large each is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) delayed: u32,
    pub(crate) finished: u32,
    pub(crate) routes: u32,
    pub(crate) held: Duration,
}

impl Sizes {
    /// Rows that a circumstance adds to the messages.
    pub(crate) fn rows(self, circumstance: Circumstance) -> u64 {
        match circumstance {
            Circumstance::Delayed => u64::from(self.delayed),
            Circumstance::Finished => u64::from(self.finished),
            Circumstance::Routes => u64::from(self.routes) * u64::from(ON_EACH_ROUTE),
            Circumstance::Tenant | Circumstance::Held => 0,
        }
    }
}

/// Something that stands in the database from before the measurement until after it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Standing {
    Delayed(u32),
    Finished(u32),
    Routes(u32),
}

impl Standing {
    pub(crate) fn size(self) -> u32 {
        match self {
            Self::Delayed(size) | Self::Finished(size) | Self::Routes(size) => size,
        }
    }

    /// Makes it; then the tables are vacuumed and analyzed, as autovacuum would do sooner or later.
    pub(crate) async fn make(self, pool: &PgPool, output: Output) -> Result<(), Failure> {
        match self {
            Self::Delayed(messages) => send_delayed(pool, messages, output).await?,
            Self::Finished(messages) => finish(pool, messages, output).await?,
            Self::Routes(routes) => send_to_routes(pool, routes).await?,
        }
        settle(pool).await
    }

    /// Counts it, and refuses to go on if it is not as large as it was to be.
    pub(crate) async fn count(self, pool: &PgPool) -> Result<i64, Failure> {
        let count = sqlx::query_scalar(match self {
            Self::Delayed(_) => {
                "select count(*) from bus.delayed d
                  where d.lane = bus.lane($1) and d.due > clock_timestamp() + interval '1 hour'"
            }
            Self::Finished(_) => {
                "select count(*) from public.agent_messages m
                  where m.status = 'done' and m.service || '/' || m.role || '/' || m.shard = $1"
            }
            Self::Routes(_) => {
                "select count(distinct r.route) from bus.ready r join bus.routes s on s.lane = r.lane where r.route <> $1"
            }
        });
        let count: i64 = count.bind(WORK.to_string()).fetch_one(pool).await?;
        if count < i64::from(self.size()) {
            return Err(Failure::failed(format!("Of {self:?} only {count} are there")));
        }
        Ok(count)
    }
}

async fn send_delayed(pool: &PgPool, messages: u32, output: Output) -> Result<(), Failure> {
    for first in (0..messages).step_by(SENT_AT_ONCE) {
        let end = first.saturating_add(SENT_AT_ONCE.try_into().unwrap_or(u32::MAX)).min(messages);
        sqlx::query(
            "select count(*) from bus.enqueue_many((
               select jsonb_agg(jsonb_build_object('service', $1::text, 'role', $2::text, 'tenant', 'default',
                                                   'payload', jsonb_build_object('id', n), 'delay_ms', $3::bigint + n))
                 from generate_series($4::bigint, $5::bigint - 1) as n))",
        )
        .bind(WORK.service())
        .bind(WORK.role())
        .bind(DELAY_MS)
        .bind(i64::from(first))
        .bind(i64::from(end))
        .execute(pool)
        .await?;
        if end % 100_000 == 0 {
            output.note(&format!("{end} of {messages} delayed messages"));
        }
    }
    Ok(())
}

async fn finish(pool: &PgPool, messages: u32, output: Output) -> Result<(), Failure> {
    let mut connection = pool.acquire().await?;
    for first in (0..messages).step_by(INSERTED_AT_ONCE) {
        let end = first.saturating_add(INSERTED_AT_ONCE.try_into().unwrap_or(u32::MAX)).min(messages);
        insert_finished(&mut connection, &WORK, first..end, messages).await.map_err(|error| {
            Failure::new(Kind::Auth, "Finished messages could not be inserted")
                .because(&error)
                .hint("this needs the rights of a superuser; leave it out with --only, or use a server of your own")
        })?;
        output.note(&format!("{end} of {messages} finished messages"));
    }
    Ok(())
}

async fn send_to_routes(pool: &PgPool, routes: u32) -> Result<(), Failure> {
    let at_once = SENT_AT_ONCE / usize::try_from(ON_EACH_ROUTE).unwrap_or(1);
    for first in (0..routes).step_by(at_once) {
        let end = first.saturating_add(at_once.try_into().unwrap_or(u32::MAX)).min(routes);
        sqlx::query(
            "select count(*) from bus.enqueue_many((
               select jsonb_agg(jsonb_build_object('service', $1::text, 'role', 'other-' || r, 'tenant', 'default',
                                                   'payload', jsonb_build_object('id', n)))
                 from generate_series($2::bigint, $3::bigint - 1) as r, generate_series(1, $4::integer) as n))",
        )
        .bind(WORK.service())
        .bind(i64::from(first))
        .bind(i64::from(end))
        .bind(ON_EACH_ROUTE.cast_signed())
        .execute(pool)
        .await?;
        // settings that say what goes without saying: what counts is that every route has some
        sqlx::query(
            "select count(bus.set_aging($1::text, 'other-' || r, 0, 10000, 'bench'))
               from generate_series($2::bigint, $3::bigint - 1) as r",
        )
        .bind(WORK.service())
        .bind(i64::from(first))
        .bind(i64::from(end))
        .execute(pool)
        .await?;
    }
    Ok(())
}

/// What autovacuum and the checkpointer would do meanwhile, done before.
pub(crate) async fn settle(pool: &PgPool) -> Result<(), Failure> {
    sqlx::query("vacuum (analyze) public.agent_messages, bus.ready, bus.delayed, bus.claims, bus.routes")
        .execute(pool)
        .await?;
    // only for quiet: whoever may not ask for it measures beside one
    let _ = sqlx::query("checkpoint").execute(pool).await;
    Ok(())
}
