//! The heartbeat's own connection: beats must not wait behind the work of the process for a place in its pool.

use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool, postgres::PgConnectOptions};

/// A connection that is made when needed and thrown away whenever anything goes wrong on it.
#[derive(Debug)]
pub(crate) struct Link {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl Link {
    /// A link to the database of the pool, on which no statement outlives `statement_timeout`: a client that gives up
    /// waiting would otherwise leave a busy server process behind with each try.
    pub(crate) fn new(pool: &PgPool, statement_timeout: Duration) -> Self {
        let milliseconds = statement_timeout.as_millis().max(1);
        let options = pool.connect_options().as_ref().clone().options([("statement_timeout", milliseconds)]);
        Self { options, connection: None }
    }

    /// The connection, which the caller gives back after success only; dropped half-way it is closed.
    pub(crate) async fn take(&mut self) -> Result<PgConnection, sqlx::Error> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => PgConnection::connect_with(&self.options).await,
        }
    }

    pub(crate) fn give_back(&mut self, connection: PgConnection) {
        self.connection = Some(connection);
    }
}
