//! What keeps two versions of a schema from being compatible.

use std::fmt;

use cogo_contracts::SchemaSubject;
use serde::Serialize;

/// Which reader must get along with which data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Towards {
    /// Readers of the new version with data of the old.
    Backward,
    /// Readers of the old version with data of the new.
    Forward,
}

impl Towards {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backward => "backward",
            Self::Forward => "forward",
        }
    }
}

/// One place at which compatibility breaks, or cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where in the schema, as a JSON pointer; references are followed without a trace in it.
    pub path: String,
    /// What changed there.
    pub change: String,
    /// Which compatibility it concerns.
    pub towards: Towards,
    /// Whether it is certain that it breaks; otherwise it cannot be decided, which is refused as well.
    pub certain: bool,
    /// The earlier version that was compared with.
    pub against: i32,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        let (change, towards, against) = (&self.change, self.towards.as_str(), self.against);
        if self.certain {
            return write!(formatter, "{path}: {change} breaks {towards} compatibility with version {against}");
        }
        write!(formatter, "{path}: {change}, and {towards} compatibility with version {against} cannot be decided")
    }
}

/// A schema that must not become the next version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatible {
    /// What it was meant for.
    pub subject: SchemaSubject,
    /// Every place at which it breaks the rule.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Incompatible {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} cannot get this schema: ", self.subject)?;
        for (index, finding) in self.findings.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Incompatible {}
