//! What can go wrong on the bus, told apart where a caller would act differently.

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
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(_))
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
            assert!(!error.is_transient(), "{error:?}");
            let Error::Contract { what: "the database", source } = error else { panic!("{error:?}") };
            assert!(source.to_string().contains("number out of range"), "{source}");
        }
        assert!(Error::from(sqlx::Error::PoolTimedOut).is_transient());
    }
}
