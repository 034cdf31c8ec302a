//! Firing: each occurrence is sent once, however many processes fire.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::warn;

use crate::{
    Bus, Error,
    schedule::{
        InvalidSchedule, MissedRuns,
        timetable::{Plan, Timetable},
    },
};

/// What one round of firing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    /// Schedules that were due; as many as the limit means that there may be more.
    pub due: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Schedules that can never fire as they stand and were paused with the reason.
    pub broken: u64,
}

#[derive(sqlx::FromRow)]
struct DueRow {
    tenant: String,
    name: String,
    revision: i64,
    cron: String,
    time_zone: String,
    missed: String,
    catch_up_cap: i16,
    since: DateTime<Utc>,
    next_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
}

/// Why nothing was sent.
enum NotFired {
    /// It never can be as it stands, and is paused.
    Broken,
    /// Somebody else was first.
    Changed,
}

impl DueRow {
    fn plan(&self) -> Result<Plan, InvalidSchedule> {
        let timetable = Timetable::parse(&self.cron, &self.time_zone)?;
        let first = match self.next_at {
            Some(next_at) => next_at,
            None => timetable.next_after(self.since)?,
        };
        let cap = usize::from(self.catch_up_cap.unsigned_abs());
        timetable.plan(first, self.now, MissedRuns::of_column(&self.missed), cap)
    }
}

impl Bus {
    /// Sends what up to `limit` due schedules have to send, by the database's clock. Sending and moving on to the next
    /// occurrence are one transaction per schedule, and who comes second changes nothing.
    ///
    /// # Errors
    /// When the database does not answer, after what was sent until then; that stands.
    pub async fn fire_due_schedules(&self, limit: u32) -> Result<Fired, Error> {
        let due: Vec<DueRow> = sqlx::query_as(
            "select tenant, name, revision, cron, time_zone, missed, catch_up_cap, since, next_at, now
               from bus.due_schedules($1)",
        )
        .bind(limit.cast_signed())
        .fetch_all(&self.pool)
        .await?;
        let mut fired = Fired::default();
        let mut trouble = None;
        for row in due {
            fired.due += 1;
            match self.fire(&row).await {
                Ok(Ok(sent)) => fired.sent += sent,
                Ok(Err(NotFired::Broken)) => fired.broken += 1,
                Ok(Err(NotFired::Changed)) => {}
                // tried again at once, and waited for as long each time
                Err(Error::Database(error)) if is_held(&error) => {
                    warn!(schedule = row.name, tenant = row.tenant, "somebody holds a lock that firing it needs");
                }
                // what the database says of one schedule is no reason to keep the others waiting
                Err(Error::Database(error)) if error.as_database_error().is_some() => {
                    trouble = Some(Error::Database(error));
                }
                Err(error @ (Error::Conflict { .. } | Error::Refused { .. })) => trouble = Some(error),
                Err(error) => return Err(error),
            }
        }
        trouble.map_or(Ok(fired), Err)
    }

    /// How many messages are new.
    async fn fire(&self, due: &DueRow) -> Result<Result<u64, NotFired>, Error> {
        let plan = match due.plan() {
            Ok(plan) => plan,
            Err(invalid) => return self.break_schedule(due, &with_causes(&invalid)).await.map(Err),
        };
        let recorded: Result<Option<i32>, Error> =
            sqlx::query_scalar("select bus.record_schedule($1, $2, $3, $4, $5, $6, $7)")
                .bind(&due.name)
                .bind(&due.tenant)
                .bind(due.revision)
                .bind(due.next_at)
                .bind(&plan.occurrences)
                .bind(plan.next_at)
                .bind(plan.left_out)
                .fetch_one(&self.pool)
                .await
                .map_err(Error::from);
        match recorded {
            Ok(Some(sent)) => Ok(Ok(u64::from(sent.unsigned_abs()))),
            // another firer was first, or people changed it meanwhile
            Ok(None) => Ok(Err(NotFired::Changed)),
            // its route may just have been drained, which goes by
            Err(refused) if !refused.is_transient() && !matches!(refused, Error::Conflict { .. }) => {
                self.break_schedule(due, &refused.to_string()).await.map(Err)
            }
            Err(error) => Err(error),
        }
    }

    async fn break_schedule(&self, due: &DueRow, reason: &str) -> Result<NotFired, Error> {
        let broken: bool = sqlx::query_scalar("select bus.break_schedule($1, $2, $3, $4)")
            .bind(&due.name)
            .bind(&due.tenant)
            .bind(due.revision)
            .bind(reason)
            .fetch_one(&self.pool)
            .await?;
        if broken {
            warn!(schedule = due.name, tenant = due.tenant, reason, "paused a schedule that cannot fire");
        }
        Ok(if broken { NotFired::Broken } else { NotFired::Changed })
    }

    /// How long until a schedule is due; none if there is none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn next_schedule_due(&self) -> Result<Option<Duration>, Error> {
        let due: Option<i64> = sqlx::query_scalar("select bus.next_schedule_due()").fetch_one(&self.pool).await?;
        Ok(due.map(|wait| Duration::from_millis(wait.unsigned_abs())))
    }
}

/// Whether another session has what is needed, for longer than one schedule may wait.
fn is_held(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
