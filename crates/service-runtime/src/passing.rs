//! Tells a database that is away from one that says no.

use std::{io, time::Duration};

use cogo_bus_core::Error as BusError;

/// SQLSTATE classes of a database that is not there or not able just now: connection, resources, operator, system.
const AWAY: [&str; 4] = ["08", "53", "57", "58"];
/// A statement that took too long is in class 57, but it would take too long again.
const TOOK_TOO_LONG: &str = "57014";
/// Two transactions stood in each other's way.
const ROLLED_BACK: &str = "40";
/// A lock was not to be had in time, and a server that takes no writes just now, as while another takes over.
const NOT_NOW: [&str; 2] = ["55P03", "25006"];

/// Whether the same call would succeed once the database is back.
pub(crate) fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => {
            refusal.code().is_some_and(|code| code != TOOK_TOO_LONG && AWAY.iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::BeginFailed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether nothing speaks against making the same call again, as often as it takes.
pub(crate) fn is_passing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    is_away(error) || code.is_some_and(|code| code.starts_with(ROLLED_BACK) || NOT_NOW.contains(&&*code))
}

/// The answer of the bus, or that there was none in time.
pub(crate) async fn in_time<T, E: From<BusError>>(
    patience: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(patience, call).await.unwrap_or_else(|_elapsed| Err(silent().into()))
}

/// The error of a database that says nothing.
pub(crate) fn silent() -> BusError {
    BusError::Database(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}
