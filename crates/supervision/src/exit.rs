//! How a child ended.

use std::fmt;

use serde::Serialize;

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "reason", rename_all = "snake_case")]
pub enum Exit {
    /// It was done.
    Normal,
    /// It was told to stop, or it is a group that gave up: not an error of its own.
    Shutdown,
    /// It failed, and this is what it said.
    Abnormal(String),
    /// It was killed by its supervisor.
    Killed,
    /// It failed and a new start would not help, as this says: it stays down, whatever its restart rule.
    Final(String),
}

impl Exit {
    /// Whether a transient child that ended like this stays down.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(self, Self::Normal | Self::Shutdown)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => formatter.write_str("done"),
            Self::Shutdown => formatter.write_str("stopped"),
            Self::Abnormal(reason) | Self::Final(reason) => formatter.write_str(reason),
            Self::Killed => formatter.write_str("killed"),
        }
    }
}

impl From<()> for Exit {
    fn from((): ()) -> Self {
        Self::Normal
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Exit {
    /// The whole chain of causes is kept where the error's alternate form prints it.
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Normal,
            Err(error) => Self::Abnormal(format!("{error:#}")),
        }
    }
}
