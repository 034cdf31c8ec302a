//! What `cogo doctor` looks at in the database: reach, version, schema, clock, room for connections and notifications.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use cogo_db::SchemaState;
use sqlx::PgPool;

use crate::{
    command::{
        doctor::Finding,
        doctor_machine::{OLDEST_POSTGRES, major_of},
    },
    context::{Context, open},
    failure::Failure,
    format,
};

/// Nothing in COGO uses this machine's clock for decisions, but people compare logs.
const NOTABLE_SKEW_MS: f64 = 1000.0;
/// A fleet holds up to eight for each of its processes.
const COMFORTABLE_CONNECTIONS: i64 = 120;
/// Share of the queue of notifications that is seldom in use. When it is full, every commit with one fails.
const COMFORTABLE_NOTIFICATIONS: f64 = 0.1;

/// Looks as far as it can see; what it cannot reach it says once.
pub(crate) async fn look(context: &Context) -> Vec<Finding> {
    const NAME: &str = "database";
    let url = match context.database_url() {
        Ok(url) => url,
        Err(failure) => return vec![Finding::warn(NAME, plain(&failure), "`cogo up` starts one, or set DATABASE_URL")],
    };
    let pool = match open(&url).await {
        Ok(pool) => pool,
        Err(failure) => return vec![failed(NAME, &failure, "check that it runs, and DATABASE_URL")],
    };
    let mut findings = Vec::new();
    let looks = [
        version(&pool).await,
        schema(&pool).await,
        clock(&pool).await,
        connections(&pool).await,
        notifications(&pool).await,
    ];
    for finding in looks {
        findings.push(finding.unwrap_or_else(|failure| failed(NAME, &failure, "see the log of Postgres")));
    }
    findings
}

/// With the hint of the failure, or else with this one.
fn failed(name: &'static str, failure: &Failure, hint: &str) -> Finding {
    let problem = failure.problem();
    Finding::fail(name, problem.detail, problem.hint.unwrap_or_else(|| hint.to_owned()))
}

fn plain(failure: &Failure) -> String {
    failure.problem().detail
}

async fn version(pool: &PgPool) -> Result<Finding, Failure> {
    const NAME: &str = "database version";
    let version: String = sqlx::query_scalar("show server_version").fetch_one(pool).await?;
    Ok(match major_of(&version) {
        Some(major) if major >= OLDEST_POSTGRES => Finding::ok(NAME, version),
        _ => Finding::fail(NAME, version, format!("COGO needs Postgres {OLDEST_POSTGRES} or later")),
    })
}

async fn schema(pool: &PgPool) -> Result<Finding, Failure> {
    const NAME: &str = "schema";
    Ok(match cogo_db::schema_state(pool).await? {
        SchemaState::Fits(version) => Finding::ok(NAME, version.to_string()),
        SchemaState::Behind { have: 0, need } => {
            Finding::fail(NAME, format!("the database is empty, this build needs {need}"), "cogo migrate")
        }
        SchemaState::Behind { have, need } => {
            Finding::fail(NAME, format!("at {have}, this build needs {need}"), "cogo migrate")
        }
    })
}

async fn clock(pool: &PgPool) -> Result<Finding, Failure> {
    const NAME: &str = "clock";
    let asked = (SystemTime::now(), Instant::now());
    let theirs: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await?;
    let round_trip = asked.1.elapsed();
    // the answer was made somewhere on the way, most likely in the middle
    let ours = DateTime::<Utc>::from(asked.0 + round_trip / 2);
    let skew = Duration::from_micros((theirs - ours).num_microseconds().unwrap_or(i64::MAX).unsigned_abs());
    let skew_ms = skew.as_secs_f64() * 1000.0;
    let detail = format!("{} between here and the database", format::milliseconds(skew_ms));
    Ok(if skew_ms < NOTABLE_SKEW_MS {
        Finding::ok(NAME, detail)
    } else {
        Finding::warn(NAME, detail, "set both clocks by NTP; COGO goes by the database's")
    })
}

async fn connections(pool: &PgPool) -> Result<Finding, Failure> {
    const NAME: &str = "connections";
    let (limit, used): (i64, i64) = sqlx::query_as(
        "select current_setting('max_connections')::bigint,
                (select count(*) from pg_stat_activity where backend_type = 'client backend')",
    )
    .fetch_one(pool)
    .await?;
    let detail = format!("{used} of {limit} in use");
    Ok(if limit >= COMFORTABLE_CONNECTIONS {
        Finding::ok(NAME, detail)
    } else {
        Finding::warn(
            NAME,
            detail,
            format!("raise max_connections to {COMFORTABLE_CONNECTIONS}, or lower COGO_MAX_CONNECTIONS"),
        )
    })
}

async fn notifications(pool: &PgPool) -> Result<Finding, Failure> {
    Ok(of_queue(sqlx::query_scalar("select pg_notification_queue_usage()").fetch_one(pool).await?))
}

fn of_queue(used: f64) -> Finding {
    const NAME: &str = "notifications";
    let detail = format!("{:.0} % of their queue in use", used * 100.0);
    if used < COMFORTABLE_NOTIFICATIONS {
        return Finding::ok(NAME, detail);
    }
    let hint = "end the session that listens and stays in its transaction, before sending fails: select pid, xact_start, \
                query from pg_stat_activity where xact_start is not null order by xact_start";
    Finding::warn(NAME, detail, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_of_notifications_that_fills_is_told_before_it_is_full() {
        assert_eq!(of_queue(0.0).hint, None);
        assert!(of_queue(0.2).hint.is_some_and(|hint| hint.contains("pg_stat_activity")));
    }
}
