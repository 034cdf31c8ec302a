//! The connection pool that every process shares among its parts.

use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Port on which Supabase's pooler speaks transaction mode, where prepared statements do not survive.
const TRANSACTION_POOLER_PORT: u16 = 6543;
/// A connection that rested longer is asked whether it still lives; asking at each use would cost as much as a small statement.
pub const TRUSTED_REST: Duration = Duration::from_millis(100);

/// How a process connects.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// `postgres://` address; it may carry a password, so it is never logged.
    pub url: String,
    /// Most connections that the pool holds at once; listeners, and the two lines of a bus, are beside it.
    pub max_connections: u32,
    /// Shown in `pg_stat_activity.application_name`.
    pub application_name: String,
    /// How long a caller waits for a free connection.
    pub acquire_timeout: Duration,
    /// After how long the database breaks off a statement of this pool; absent: the database's own setting. Pools of
    /// migrations leave it out.
    pub statement_timeout: Option<Duration>,
}

impl PoolSettings {
    /// Settings for a process: 8 connections, 5 s to get one, no limit of a statement.
    #[must_use]
    pub fn new(url: impl Into<String>, application_name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 8,
            application_name: application_name.into(),
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: None,
        }
    }
}

/// Builds the pool without connecting: a process must start while Postgres is still coming up.
///
/// # Errors
/// When the address cannot be parsed.
pub fn connect(settings: &PoolSettings) -> Result<PgPool, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(&settings.url)?
        .application_name(&settings.application_name)
        .options([("timezone", "UTC")]);
    if let Some(timeout) = settings.statement_timeout {
        options = options.options([("statement_timeout", timeout.as_millis().to_string())]);
    }
    if options.get_port() == TRANSACTION_POOLER_PORT {
        options = options.statement_cache_capacity(0);
    }
    Ok(PgPoolOptions::new()
        .min_connections(0)
        .max_connections(settings.max_connections)
        .acquire_timeout(settings.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .test_before_acquire(false)
        .before_acquire(|connection, rest| {
            Box::pin(async move {
                if rest.idle_for > TRUSTED_REST {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options))
}
