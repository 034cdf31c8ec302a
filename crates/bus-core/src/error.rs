//! What can go wrong on the bus, told apart where a caller would act differently.

/// SQLSTATE classes of a database that is not there or not able just now: connection, resources, operator, system.
const AWAY: [&str; 4] = ["08", "53", "57", "58"];
/// A statement that took too long is in class 57, but it would take too long again.
const TOOK_TOO_LONG: &str = "57014";
/// Two transactions stood in each other's way.
const ROLLED_BACK: &str = "40";
/// A lock was not to be had in time, and a server that takes no writes just now, as while another takes over.
const NOT_NOW: [&str; 2] = ["55P03", "25006"];

/// Error of a bus operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused the content: a name, a size, a field, a tenant. Trying again does not help.
    #[error("The bus refused the request: {reason}")]
    Refused {
        /// The database's own words, safe to show.
        reason: String,
        #[source]
        /// The refusal as it came.
        source: sqlx::Error,
    },
    /// There is no such message.
    #[error("No such message: {reason}")]
    NotFound {
        /// The database's own words.
        reason: String,
    },
    /// The message is in a state that does not allow this.
    #[error("Not possible now: {reason}")]
    Conflict {
        /// The database's own words.
        reason: String,
    },
    /// The database did not answer or broke off; the outcome may be unknown.
    #[error("The database did not answer")]
    Database(#[source] sqlx::Error),
    /// A row does not have the form of its contract, or holds what cannot be read: Postgres takes numbers and depths for
    /// JSON that we do not. Trying again does not help.
    #[error("Row of {what} is not of its contract")]
    Contract {
        /// The table or function.
        what: &'static str,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// How often a call is made that the database fails for a reason of its own, one that is not [`Error::is_passing`],
    /// before that is its answer.
    pub const REFUSALS: u8 = 3;

    /// Whether the database said nothing about the request itself: it did not answer, broke off, or failed for a reason of
    /// its own. The same call may succeed later, but that reason may also stay until somebody removes it, as a right that
    /// is missing does: who would call without end asks [`Error::is_passing`].
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(_))
    }

    /// Whether nothing speaks against making the same call again, as often as it takes: the database is away or not able
    /// just now, or another transaction stood in the way.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        is_away(error) || code.is_some_and(|code| code.starts_with(ROLLED_BACK) || NOT_NOW.contains(&&*code))
    }

    /// Whether no later call can do better: the content is refused, the message does not exist or a row cannot be read. A
    /// conflict is not final, since states change, as that of a route that is being drained.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Database(_) | Self::Conflict { .. })
    }

    /// The error of a statement that reads `what`, a table or function.
    pub(crate) fn reading(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Contract { what, source: serde::de::Error::custom(error) }
            }
            unanswered => Self::of_answer(unanswered),
        }
    }

    fn of_answer(error: sqlx::Error) -> Self {
        let Some(refusal) = error.as_database_error() else {
            return Self::Database(error);
        };
        let reason = refusal
            .constraint()
            .map_or_else(|| refusal.message().to_owned(), |constraint| constraint.replace('_', " "));
        match refusal.code().as_deref() {
            Some("P0002") => Self::NotFound { reason },
            Some("55000") => Self::Conflict { reason },
            // classes 22 (data), 23 (constraint) and 54 (limits of the program, as JSON that is too deep)
            Some(code) if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                Self::Refused { reason, source: error }
            }
            _ => Self::Database(error),
        }
    }
}

/// Whether the same call would succeed once the database is back.
fn is_away(error: &sqlx::Error) -> bool {
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

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::reading("the database")(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_will_not_be_readable_later() {
        let column = sqlx::Error::ColumnDecode { index: "\"result\"".to_owned(), source: "number out of range".into() };
        for unreadable in [column, sqlx::Error::Decode("number out of range".into())] {
            let error = Error::from(unreadable);
            assert!(!error.is_transient() && !error.is_passing() && error.is_final(), "{error:?}");
            let Error::Contract { what: "the database", source } = error else { panic!("{error:?}") };
            assert!(source.to_string().contains("number out of range"), "{source}");
        }
        assert!(Error::from(sqlx::Error::PoolTimedOut).is_transient());
    }

    #[tokio::test]
    async fn what_the_database_says_tells_how_often_it_is_asked_again() {
        let database = cogo_test_support::database().await;
        let (transient, passing, last) = (true, true, true);
        for (code, expected) in [
            ("57P03", (transient, passing, !last)),
            ("53300", (transient, passing, !last)),
            ("40P01", (transient, passing, !last)),
            ("55P03", (transient, passing, !last)),
            ("25006", (transient, passing, !last)),
            ("57014", (transient, !passing, !last)),
            ("42501", (transient, !passing, !last)),
            ("42883", (transient, !passing, !last)),
            ("55000", (!transient, !passing, !last)),
            ("22023", (!transient, !passing, last)),
            ("P0002", (!transient, !passing, last)),
        ] {
            let statement = format!("do $$ begin raise exception 'no' using errcode = '{code}'; end $$");
            let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&database.pool).await;
            let error = Error::from(refused.unwrap_err());
            assert_eq!((error.is_transient(), error.is_passing(), error.is_final()), expected, "{code}: {error:?}");
        }
        for error in [sqlx::Error::PoolTimedOut, sqlx::Error::WorkerCrashed] {
            assert!(Error::from(error).is_passing());
        }
    }
}
