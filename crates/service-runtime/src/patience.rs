//! Bounds how long an answer of the database is waited for.

use std::{io, time::Duration};

use cogo_bus_core::Error as BusError;

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
