//! What those ask who look at the bus every second or two: whether there is anything to do, in one short statement.

use std::time::Duration;

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::Error;

/// What waits for somebody to see to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// Whether a lease has passed, so that [`Bus::reclaim`](crate::Bus::reclaim) has something to do.
    pub leases: bool,
    /// Whether a time to live has passed, so that [`Bus::expire`](crate::Bus::expire) has something to do.
    pub outlived: bool,
    /// Time until a schedule is due; none if there is none.
    pub schedule: Option<Duration>,
}

/// Whether the chores of healing have anything to do.
///
/// # Errors
/// When the database does not answer.
pub async fn overdue(executor: impl PgExecutor<'_>) -> Result<Overdue, Error> {
    let (leases, outlived, schedule_ms): (bool, bool, Option<i64>) =
        sqlx::query_as("select o.leases, o.outlived, o.schedule_ms from bus.overdue() as o")
            .fetch_one(executor)
            .await?;
    Ok(Overdue { leases, outlived, schedule: schedule_ms.map(|wait| Duration::from_millis(wait.unsigned_abs())) })
}

/// What shows whether the bus has rested since an earlier look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Traffic {
    /// Whether anything stands in a queue or is claimed.
    pub unfinished: bool,
    /// The newest message, ended or not; another one than before has come in between.
    pub newest: Option<Uuid>,
}

/// Whether there is anything to count: much cheaper than [`load`](crate::load).
///
/// # Errors
/// When the database does not answer.
pub async fn traffic(executor: impl PgExecutor<'_>) -> Result<Traffic, Error> {
    let traffic = sqlx::query_as(
        "select exists (select from bus.ready) or exists (select from bus.claims) or exists (select from bus.delayed)
                  or exists (select from bus.groups) or exists (select from bus.joins) as unfinished,
                (select m.id from public.agent_messages m order by m.id desc limit 1) as newest",
    )
    .fetch_one(executor)
    .await?;
    Ok(traffic)
}
