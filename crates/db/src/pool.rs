//! The connection pool that every process shares among its parts.

use std::{io, str::FromStr, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

/// Port on which Supabase's pooler speaks transaction mode: neither prepared statements nor LISTEN survive there.
const TRANSACTION_POOLER_PORT: u16 = 6543;
/// A connection that rested longer is asked whether it still lives; asking at each use would cost as much as a small statement.
pub const TRUSTED_REST: Duration = Duration::from_millis(100);
/// How long it may take to say so. One that a silent path has swallowed would hold its place in the pool for as long as TCP
/// goes on trying.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

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
/// When the address cannot be parsed, or is that of a pooler in transaction mode.
pub fn connect(settings: &PoolSettings) -> Result<PgPool, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(&settings.url)?
        .application_name(&settings.application_name)
        // the functions of the bus lock and look again, which needs to see what was committed meanwhile
        .options([("timezone", "UTC"), ("default_transaction_isolation", "read committed")]);
    if let Some(timeout) = settings.statement_timeout {
        options = options.options([("statement_timeout", timeout.as_millis().to_string())]);
    }
    if options.get_port() == TRANSACTION_POOLER_PORT {
        let reason = "Port 6543 is a pooler in transaction mode, where neither prepared statements nor LISTEN work; give the \
                      address of the session mode (port 5432) or of the database itself";
        return Err(sqlx::Error::Configuration(reason.into()));
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
                    lives(connection).await?;
                }
                Ok(true)
            })
        })
        // the pool asks once more itself, and without limit
        .after_release(|connection, _| Box::pin(async move { lives(connection).await.map(|()| true) }))
        .after_connect(|connection, _| Box::pin(refuse_standby(connection)))
        .connect_lazy_with(options))
}

async fn lives(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let silent = |_elapsed| Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no sign of life")));
    timeout(SIGN_OF_LIFE, connection.ping()).await.unwrap_or_else(silent)
}

/// While one server takes over from another, an address may lead to the one that only follows. A connection to it would refuse
/// every write for as long as it lives.
async fn refuse_standby(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let follows: bool = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(connection).await?;
    if follows {
        return Err(sqlx::Error::Protocol("the server is a standby and takes no writes".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pooler_in_transaction_mode_is_refused_by_name() {
        let refused = connect(&PoolSettings::new("postgres://a@localhost:6543/b", "test")).unwrap_err().to_string();
        assert!(refused.contains("transaction mode") && refused.contains("5432"), "{refused}");
    }

    #[tokio::test]
    async fn every_look_sees_what_was_committed_whatever_the_database_says() {
        let database = cogo_test_support::empty_database().await;
        sqlx::raw_sql(
            "do $$ begin execute format('alter database %I set default_transaction_isolation = serializable',
                                        current_database()); end $$",
        )
        .execute(&database.pool)
        .await
        .unwrap();
        let pool = connect(&PoolSettings::new(&database.url, "test")).unwrap();
        let isolation: String =
            sqlx::query_scalar("select current_setting('transaction_isolation')").fetch_one(&pool).await.unwrap();
        assert_eq!(isolation, "read committed");
    }
}
