//! Schedules: messages that the clock sends, by cron expressions in time zones.

mod fire;
mod timetable;

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_contracts::{Route, Tenant};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Bus, Error};

pub use fire::Fired;
pub use timetable::InvalidSchedule;
use timetable::Timetable;

/// What becomes of occurrences that nobody fired within a minute, because nothing ran or the database was away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissedRuns {
    /// They are not sent.
    Skip,
    /// All that are due are one message, that of the newest.
    #[default]
    RunOnce,
    /// Each is sent, oldest first, at most the newest `catch_up_cap` of them.
    RunAll,
}

impl MissedRuns {
    const fn column(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::RunOnce => "run_once",
            Self::RunAll => "run_all",
        }
    }

    /// The column's check allows no other values.
    fn of_column(column: &str) -> Self {
        match column {
            "skip" => Self::Skip,
            "run_all" => Self::RunAll,
            _ => Self::RunOnce,
        }
    }
}

/// A schedule to be defined or changed.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSchedule {
    /// Unlike any other of the tenant: `[A-Za-z0-9][A-Za-z0-9_.-]{0,99}`.
    pub name: String,
    /// Whose schedule and messages.
    pub tenant: Tenant,
    /// Five fields (minute, hour, day, month, weekday) or six, with the second first.
    pub cron: String,
    /// IANA name of the zone that the expression is meant in.
    pub time_zone: String,
    /// Where the messages go.
    pub route: Route,
    /// The request, a JSON object.
    pub payload: Value,
    /// 0 to 1000, lower first.
    pub priority: i16,
    /// Counted attempts after which a failure is final.
    pub max_attempts: i16,
    /// Never started later than this after it was sent.
    pub ttl: Option<Duration>,
    /// What becomes of missed occurrences.
    pub missed: MissedRuns,
    /// 1 to 1000.
    pub catch_up_cap: i16,
}

impl NewSchedule {
    /// A schedule in UTC with the defaults of the bus.
    #[must_use]
    pub fn new(name: &str, tenant: Tenant, cron: &str, route: Route, payload: Value) -> Self {
        Self {
            name: name.to_owned(),
            tenant,
            cron: cron.to_owned(),
            time_zone: "UTC".to_owned(),
            route,
            payload,
            priority: 100,
            max_attempts: 5,
            ttl: None,
            missed: MissedRuns::default(),
            catch_up_cap: 100,
        }
    }
}

/// A schedule as it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Schedule {
    /// Whose it is.
    pub tenant: Tenant,
    /// Its name.
    pub name: String,
    /// The expression.
    pub cron: String,
    /// The zone that it is meant in.
    pub time_zone: String,
    /// Where the messages go.
    pub route: Route,
    /// The request.
    pub payload: Value,
    /// Priority of the messages.
    pub priority: i16,
    /// Attempts of the messages.
    pub max_attempts: i16,
    /// Milliseconds after which a message is not started any more.
    pub ttl_ms: Option<i64>,
    /// What becomes of missed occurrences.
    pub missed: MissedRuns,
    /// Most that are made up for.
    pub catch_up_cap: i16,
    /// Whether it sends nothing.
    pub paused: bool,
    /// The next occurrence; absent until a firer has computed it.
    pub next_at: Option<DateTime<Utc>>,
    /// The newest occurrence that was sent.
    pub last_at: Option<DateTime<Utc>>,
    /// The message that it was sent as.
    pub last_message_id: Option<Uuid>,
    /// Why it can never fire as it stands.
    pub last_error: Option<String>,
    /// When it was defined first.
    pub created_at: DateTime<Utc>,
    /// When people changed it last.
    pub updated_at: DateTime<Utc>,
}

/// Why a schedule was not defined.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// It could never fire.
    #[error(transparent)]
    Invalid(#[from] InvalidSchedule),
    /// The bus refused it or did not answer.
    #[error(transparent)]
    Bus(#[from] Error),
}

impl From<sqlx::Error> for ScheduleError {
    fn from(error: sqlx::Error) -> Self {
        Self::Bus(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct ScheduleRow {
    tenant: String,
    name: String,
    cron: String,
    time_zone: String,
    service: String,
    role: String,
    shard: i32,
    payload: Value,
    priority: i16,
    max_attempts: i16,
    ttl_ms: Option<i64>,
    missed: String,
    catch_up_cap: i16,
    paused: bool,
    next_at: Option<DateTime<Utc>>,
    last_at: Option<DateTime<Utc>>,
    last_message_id: Option<Uuid>,
    last_error: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<ScheduleRow> for Schedule {
    type Error = Error;

    fn try_from(row: ScheduleRow) -> Result<Self, Error> {
        let broken = |invalid: cogo_contracts::Invalid| Error::Contract {
            what: "bus.schedules",
            source: serde::de::Error::custom(format!("{} of {}: {invalid}", row.name, row.tenant)),
        };
        Ok(Self {
            tenant: Tenant::new(&row.tenant).map_err(broken)?,
            route: Route::new(&row.service, &row.role, u16::try_from(row.shard).unwrap_or(u16::MAX)).map_err(broken)?,
            name: row.name,
            cron: row.cron,
            time_zone: row.time_zone,
            payload: row.payload,
            priority: row.priority,
            max_attempts: row.max_attempts,
            ttl_ms: row.ttl_ms,
            missed: MissedRuns::of_column(&row.missed),
            catch_up_cap: row.catch_up_cap,
            paused: row.paused,
            next_at: row.next_at,
            last_at: row.last_at,
            last_message_id: row.last_message_id,
            last_error: row.last_error,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

impl Bus {
    /// Defines or changes a schedule; true if it is new. Said again unchanged, as at every deployment, it keeps its next
    /// occurrence and stays paused if it was.
    ///
    /// # Errors
    /// [`ScheduleError::Invalid`] for an expression or zone that could never fire, [`ScheduleError::Bus`] for the rest.
    pub async fn upsert_schedule(&self, schedule: &NewSchedule) -> Result<bool, ScheduleError> {
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?;
        Timetable::parse(&schedule.cron, &schedule.time_zone)?.next_after(now)?;
        let ttl_ms = schedule.ttl.map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let created =
            sqlx::query_scalar("select bus.upsert_schedule($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)")
                .bind(&schedule.name)
                .bind(&schedule.cron)
                .bind(schedule.route.service())
                .bind(schedule.route.role())
                .bind(schedule.tenant.as_str())
                .bind(&schedule.payload)
                .bind(&schedule.time_zone)
                .bind(i32::from(schedule.route.shard()))
                .bind(i32::from(schedule.priority))
                .bind(i32::from(schedule.max_attempts))
                .bind(ttl_ms)
                .bind(schedule.missed.column())
                .bind(i32::from(schedule.catch_up_cap))
                .fetch_one(&self.pool)
                .await?;
        Ok(created)
    }

    /// All schedules, or those of one tenant, by tenant and name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn schedules(&self, tenant: Option<&Tenant>) -> Result<Vec<Schedule>, Error> {
        let rows: Vec<ScheduleRow> = sqlx::query_as(
            "select tenant, name, cron, time_zone, service, role, shard, payload, priority, max_attempts, ttl_ms, missed,
                    catch_up_cap, paused, next_at, last_at, last_message_id, last_error, created_at, updated_at
               from bus.list_schedules($1)",
        )
        .bind(tenant.map(Tenant::as_str))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Schedule::try_from).collect()
    }

    /// Sends nothing from now on; false if there is no such schedule or it is paused already.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn pause_schedule(&self, tenant: &Tenant, name: &str) -> Result<bool, Error> {
        self.change_schedule("select bus.pause_schedule($1, $2)", tenant, name).await
    }

    /// Goes on with the next occurrence, without those of the pause; false if there is none or it is not paused.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn resume_schedule(&self, tenant: &Tenant, name: &str) -> Result<bool, Error> {
        self.change_schedule("select bus.resume_schedule($1, $2)", tenant, name).await
    }

    /// Forgets a schedule, what it sent stays; false if there is none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn remove_schedule(&self, tenant: &Tenant, name: &str) -> Result<bool, Error> {
        self.change_schedule("select bus.remove_schedule($1, $2)", tenant, name).await
    }

    async fn change_schedule(&self, statement: &'static str, tenant: &Tenant, name: &str) -> Result<bool, Error> {
        let changed = sqlx::query_scalar(statement).bind(name).bind(tenant.as_str()).fetch_one(&self.pool).await?;
        Ok(changed)
    }
}
