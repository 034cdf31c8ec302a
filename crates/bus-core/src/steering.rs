//! Steering routes while they run: pause, drain, aging, and how much may run at once or start in a second.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use cogo_contracts::Route;
use serde::{Deserialize, Serialize};

use crate::{Bus, Error};

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CountedBy {
    /// All messages of the route together.
    Route,
    /// Those of each tenant.
    Tenant,
    /// Those of each limit key of a tenant.
    Key,
}

impl CountedBy {
    /// The word for it in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Tenant => "tenant",
            Self::Key => "key",
        }
    }
}

/// How many messages may run at once and start in a second, over all processes. Without either it is no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// What it counts.
    pub counted_by: CountedBy,
    /// The one tenant, or the one `tenant/key`, that it is for; none: for every one that has no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Claims at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// Claims a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// Claims that may be made up for at once after a pause; none: those of a second, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<f64>,
}

/// How a route is steered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteSettings {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub route: Route,
    /// Nothing is claimed.
    pub paused: bool,
    /// Nothing new is accepted.
    pub draining: bool,
    /// How long a message waits to make up for one point of priority, ms.
    pub aging_ms: i32,
    /// Last change, by the database clock.
    pub changed_at: DateTime<Utc>,
    /// Who made it.
    pub changed_by: Option<String>,
    /// Its limits.
    pub limits: Vec<Limit>,
}

fn as_text<S: serde::Serializer>(route: &Route, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(route)
}

#[derive(sqlx::FromRow)]
struct SettingsRow {
    lane: i64,
    service: String,
    role: String,
    shard: i32,
    paused: bool,
    draining: bool,
    aging_ms: i32,
    changed_at: DateTime<Utc>,
    changed_by: Option<String>,
}

impl SettingsRow {
    fn parse(self, limits: Vec<Limit>) -> Result<RouteSettings, Error> {
        let broken = |reason: String| Error::Contract { what: "bus.routes", source: serde::de::Error::custom(reason) };
        let shard = u16::try_from(self.shard).map_err(|error| broken(format!("shard {}: {error}", self.shard)))?;
        let route = Route::new(&self.service, &self.role, shard)
            .map_err(|error| broken(format!("{}/{}: {error}", self.service, self.role)))?;
        Ok(RouteSettings {
            route,
            paused: self.paused,
            draining: self.draining,
            aging_ms: self.aging_ms,
            changed_at: self.changed_at,
            changed_by: self.changed_by,
            limits,
        })
    }
}

#[derive(sqlx::FromRow)]
struct LimitRow {
    lane: i64,
    counted_by: String,
    subject: String,
    max_running: Option<i32>,
    per_second: Option<f64>,
    burst: Option<f64>,
}

impl LimitRow {
    fn parse(self) -> Result<Limit, Error> {
        let counted_by = match self.counted_by.as_str() {
            "route" => CountedBy::Route,
            "tenant" => CountedBy::Tenant,
            "key" => CountedBy::Key,
            other => {
                let source = serde::de::Error::custom(format!("a limit counted by {other}"));
                return Err(Error::Contract { what: "bus.limits", source });
            }
        };
        Ok(Limit {
            counted_by,
            subject: Some(self.subject).filter(|subject| !subject.is_empty()),
            max_running: self.max_running.map(i32::unsigned_abs),
            per_second: self.per_second,
            burst: self.burst,
        })
    }
}

impl Bus {
    /// Nothing of the route is claimed until [`Bus::resume_route`]; what is in hand goes on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn pause_route(&self, route: &Route, changed_by: &str) -> Result<(), Error> {
        self.steer(route, "pause", changed_by).await
    }

    /// The route is claimed again, its sleeping workers are woken.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn resume_route(&self, route: &Route, changed_by: &str) -> Result<(), Error> {
        self.steer(route, "resume", changed_by).await
    }

    /// Nothing new is accepted until [`Bus::open_route`]; children of running tasks and replays are, and what is there is
    /// worked off.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn drain_route(&self, route: &Route, changed_by: &str) -> Result<(), Error> {
        self.steer(route, "drain", changed_by).await
    }

    /// The route accepts messages again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open_route(&self, route: &Route, changed_by: &str) -> Result<(), Error> {
        self.steer(route, "open", changed_by).await
    }

    async fn steer(&self, route: &Route, action: &str, changed_by: &str) -> Result<(), Error> {
        sqlx::query("select bus.steer($1, $2, $3, $4, $5)")
            .bind(route.service())
            .bind(route.role())
            .bind(i32::from(route.shard()))
            .bind(action)
            .bind(changed_by)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// How long a message of the route waits to make up for one point of priority (at most 24 h); for messages from now on.
    ///
    /// # Errors
    /// [`Error::Refused`] for a time that is too long.
    pub async fn set_aging(&self, route: &Route, for_one_point: Duration, changed_by: &str) -> Result<(), Error> {
        sqlx::query("select bus.set_aging($1, $2, $3, $4, $5)")
            .bind(route.service())
            .bind(route.role())
            .bind(i32::from(route.shard()))
            .bind(i32::try_from(for_one_point.as_millis()).unwrap_or(i32::MAX))
            .bind(changed_by)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Sets a limit in place of the one for the same count and subject; without a number it removes that.
    ///
    /// # Errors
    /// [`Error::Refused`] for numbers that make no sense.
    pub async fn set_limit(&self, route: &Route, limit: &Limit, changed_by: &str) -> Result<(), Error> {
        sqlx::query("select bus.set_limit($1, $2, $3, $4, $5, $6, $7, $8, $9)")
            .bind(route.service())
            .bind(route.role())
            .bind(i32::from(route.shard()))
            .bind(limit.counted_by.as_str())
            .bind(limit.subject.as_deref().unwrap_or_default())
            .bind(limit.max_running.map(|running| i32::try_from(running).unwrap_or(i32::MAX)))
            .bind(limit.per_second)
            .bind(limit.burst)
            .bind(changed_by)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Every route that was ever steered, with its limits, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn routes(&self) -> Result<Vec<RouteSettings>, Error> {
        let rows: Vec<SettingsRow> = sqlx::query_as(
            "select lane, service, role, shard, paused, draining, aging_ms, changed_at, changed_by
               from bus.routes order by service, role, shard",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut limits = BTreeMap::<i64, Vec<Limit>>::new();
        let of_all: Vec<LimitRow> = sqlx::query_as(
            "select lane, counted_by, subject, max_running, per_second, burst
               from bus.limits order by lane, counted_by desc, subject",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in of_all {
            limits.entry(row.lane).or_default().push(row.parse()?);
        }
        rows.into_iter()
            .map(|row| {
                let limits = limits.remove(&row.lane).unwrap_or_default();
                row.parse(limits)
            })
            .collect()
    }
}
