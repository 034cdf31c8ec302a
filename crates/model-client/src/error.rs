//! Why a call to a model failed, in kinds that a worker can act on.

use std::time::Duration;

/// Which wait ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The provider did not send its response headers in time.
    Header,
    /// The provider went silent in the middle of its reply.
    Idle,
    /// The call as a whole took longer than the settings allow.
    Total,
    /// The deadline that the caller set in its limits passed.
    Deadline,
}

/// A failed call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection, or it broke before the reply was complete.
    #[error("Model provider cannot be reached")]
    Unreachable {
        /// What the network said; the address is taken out of it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One of the deadlines passed.
    #[error("Model provider took too long ({0:?})")]
    Timeout(Phase),
    /// The provider asks for fewer calls (429).
    #[error("Model provider limits the rate of calls")]
    RateLimited {
        /// How long the provider asks to wait, where it said so.
        retry_after: Option<Duration>,
    },
    /// The provider answered with an error.
    #[error("Model provider answered {status}: {text}")]
    Rejected {
        /// The HTTP status; 200 when the error came inside a stream without a status of its own.
        status: u16,
        /// The provider's words, shortened, on one line and without the key.
        text: String,
    },
    /// The key is missing, wrong, or not allowed to use the model (401, 403).
    #[error("Model provider refused the key ({status})")]
    Unauthorized {
        /// The HTTP status.
        status: u16,
    },
    /// The reply does not have the shape that the protocol asks for.
    #[error("Model provider sent a reply that cannot be used: {reason}")]
    BadReply {
        /// What is wrong with it; never the reply itself.
        reason: String,
    },
    /// A money limit is set and nobody knows what the model costs, so the call is not made.
    #[error("No price is known for model {model} and the request has a money limit")]
    Unpriced {
        /// The model that was asked for.
        model: String,
    },
    /// The limits leave nothing for an answer, so the call is not made.
    #[error("Limits leave no room for an answer: the prompt alone takes about {prompt_tokens} tokens")]
    OverBudget {
        /// Estimated size of the prompt.
        prompt_tokens: u64,
    },
    /// The caller's cancellation token fired.
    #[error("Call was cancelled")]
    Cancelled,
    /// A setting is missing or cannot be used.
    #[error("Setting {key} {reason}")]
    Settings {
        /// Name of the setting.
        key: &'static str,
        /// What is wrong with its value; never the value of a secret.
        reason: String,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::RateLimited { .. } | Self::BadReply { .. } => true,
            Self::Timeout(phase) => *phase != Phase::Deadline,
            // 200: an error inside a stream without a status, which is how overload shows up.
            Self::Rejected { status, .. } => matches!(status, 200 | 408 | 409 | 425 | 500..),
            Self::Unauthorized { .. }
            | Self::Unpriced { .. }
            | Self::OverBudget { .. }
            | Self::Cancelled
            | Self::Settings { .. } => false,
        }
    }

    /// Whether it shows that the provider, or the way to it, is not well. A request that it refuses as malformed, or that
    /// was not sent at all, does not.
    #[must_use]
    pub fn tells_against_provider(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::BadReply { .. }
            // each call fails until somebody changes the key
            | Self::Unauthorized { .. } => true,
            // the caller's own deadline may have been too short for any provider
            Self::Timeout(phase) => *phase != Phase::Deadline,
            Self::Rejected { status, .. } => matches!(status, 200 | 408 | 500..),
            Self::Unpriced { .. } | Self::OverBudget { .. } | Self::Cancelled | Self::Settings { .. } => false,
        }
    }

    pub(crate) fn bad_reply(reason: impl Into<String>) -> Self {
        Self::BadReply { reason: reason.into() }
    }

    pub(crate) fn unreachable(source: reqwest::Error) -> Self {
        Self::Unreachable { source: Box::new(source.without_url()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_request_would_meet_too_tells_against_the_provider() {
        let rejected = |status| Error::Rejected { status, text: String::new() };
        for (error, tells) in [
            (Error::bad_reply("x"), true),
            (Error::Unauthorized { status: 401 }, true),
            (Error::RateLimited { retry_after: None }, true),
            (rejected(503), true),
            (rejected(400), false),
            (rejected(409), false),
            (Error::Timeout(Phase::Header), true),
            (Error::Timeout(Phase::Deadline), false),
            (Error::OverBudget { prompt_tokens: 1 }, false),
            (Error::Cancelled, false),
        ] {
            assert_eq!(error.tells_against_provider(), tells, "{error}");
        }
    }
}
