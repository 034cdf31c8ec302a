//! What a breaker tells: outcomes taken in, refusals given out, and each change with its cause.

use std::{fmt, time::Duration};

use serde::Serialize;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Calls go through and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through to find out.
    HalfOpen,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It failed in a way that tells against the other side.
    Failure,
}

/// Why a call may not go through now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The breaker is open.
    #[error("Circuit is open for another {} ms", retry_after.as_millis())]
    Open {
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
    /// As many calls as may try it out are under way.
    #[error("Circuit is being tried out by others")]
    Trying,
}

/// Why a breaker changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// So many failures in a row.
    ConsecutiveFailures {
        /// How many.
        failures: u32,
    },
    /// Too large a share failed.
    FailureRate {
        /// How many failed.
        failed: u32,
        /// Of how many in the window.
        calls: u32,
    },
    /// Too large a share was slow.
    SlowRate {
        /// How many were slow.
        slow: u32,
        /// Of how many in the window.
        calls: u32,
    },
    /// Its time was over and somebody wanted to call.
    WaitOver,
    /// A trial failed or was slow.
    TrialFailed,
    /// The trials that hang gave no verdict in time.
    NoVerdict,
    /// Enough trials succeeded.
    TrialsSucceeded {
        /// How many.
        successes: u32,
    },
    /// Another process found out.
    Shared,
    /// Somebody asked for it.
    Asked {
        /// In whose words.
        reason: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures { failures } => write!(formatter, "{failures} failures in a row"),
            Self::FailureRate { failed, calls } => write!(formatter, "{failed} of {calls} calls failed"),
            Self::SlowRate { slow, calls } => write!(formatter, "{slow} of {calls} calls were slow"),
            Self::WaitOver => write!(formatter, "the time of the opening is over"),
            Self::TrialFailed => write!(formatter, "a trial call failed or was slow"),
            Self::NoVerdict => write!(formatter, "the trial calls gave no verdict in time"),
            Self::TrialsSucceeded { successes } => write!(formatter, "{successes} trial calls succeeded"),
            Self::Shared => write!(formatter, "another process found out"),
            Self::Asked { reason } => write!(formatter, "asked for: {reason}"),
        }
    }
}

/// One change of a breaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When, by the breaker's clock.
    pub at: Duration,
    /// Where it stood.
    pub from: Phase,
    /// Where it stands.
    pub to: Phase,
    /// Why.
    pub cause: Cause,
    /// The round that it belongs to; see [`Shared`](super::Shared).
    pub round: u64,
}
