//! Why a guarded call gave no result, and what that means for the message in hand.

use std::{convert::Infallible, time::Duration};

use cogo_supervision::{breaker::Refused, budget::Exhausted, bulkhead::Refused as NoRoom};

use crate::HandlerError;

/// When a message whose call found no room or no permit is tried again.
const SOON: Duration = Duration::from_secs(1);

/// Why a guarded call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered<E> {
    /// It was not made: the circuit is open, or being tried out by others.
    #[error("Circuit is open, to be tried again in {} ms", retry_after.as_millis())]
    Open {
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
    /// It was not made: too many others are under way.
    #[error("No room for the call")]
    Full(#[source] NoRoom),
    /// It was not made: its caller had no time left.
    #[error("No time was left for the call")]
    NoTime,
    /// It was given up.
    #[error("Call did not end within its {} ms", allowed.as_millis())]
    TookTooLong {
        /// How long it was allowed to take.
        allowed: Duration,
    },
    /// It was made and failed.
    #[error(transparent)]
    Failed(E),
}

impl<E> Unanswered<E> {
    /// Its name in figures.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Open { .. } => "refused",
            Self::Full(_) => "full",
            Self::NoTime => "no_time",
            Self::TookTooLong { .. } => "timeout",
            Self::Failed(_) => "failure",
        }
    }

    /// The error of the call itself, or what kept it from an answer.
    ///
    /// # Errors
    /// What kept it from an answer.
    pub fn failure(self) -> Result<E, Unanswered<Infallible>> {
        Err(match self {
            Self::Failed(error) => return Ok(error),
            Self::Open { retry_after } => Unanswered::Open { retry_after },
            Self::Full(reason) => Unanswered::Full(reason),
            Self::NoTime => Unanswered::NoTime,
            Self::TookTooLong { allowed } => Unanswered::TookTooLong { allowed },
        })
    }

    /// The error of the call itself, or what `otherwise` makes of what kept it from an answer.
    pub fn failure_or(self, otherwise: impl FnOnce(Unanswered<Infallible>) -> E) -> E {
        self.failure().unwrap_or_else(otherwise)
    }

    /// When it makes sense to ask again, if the call was not made; none where it was, or where the time is over.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Open { retry_after } => Some(*retry_after),
            Self::Full(_) => Some(SOON),
            Self::NoTime | Self::TookTooLong { .. } | Self::Failed(_) => None,
        }
    }

    /// The error of the call itself, or what kept it from an answer as a reason to try the message again: without using
    /// up an attempt, if the call was not made because the circuit is open or there was no room.
    ///
    /// # Errors
    /// What the handler of the message should end with.
    pub fn or_retry(self, dependency: &str) -> Result<E, HandlerError> {
        self.failure().map_err(|unanswered| {
            let after = unanswered.retry_after();
            let source = anyhow::Error::from(unanswered).context(format!("call {dependency}"));
            match after {
                Some(after) => HandlerError::deferred(after, source),
                None => HandlerError::retry(source),
            }
        })
    }
}

impl<E> From<Refused> for Unanswered<E> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Open { retry_after } => Self::Open { retry_after },
            Refused::Trying => Self::Open { retry_after: SOON },
        }
    }
}

impl<E> From<Exhausted> for Unanswered<E> {
    fn from(_: Exhausted) -> Self {
        Self::NoTime
    }
}
