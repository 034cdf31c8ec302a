//! What is said when a payload does not fit its schema.

use std::fmt;

use cogo_contracts::SchemaSubject;
use serde::Serialize;

use crate::registry::Error;

/// One place at which a payload does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Where in the payload, as a JSON pointer; empty for the payload itself.
    pub path: String,
    /// What is wrong there. Names fields and limits of the schema, and no value of the payload.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        write!(formatter, "{path}: {}", self.reason)
    }
}

/// A payload or result that does not fit its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRefusal {
    /// Whose schema.
    pub subject: SchemaSubject,
    /// Which version.
    pub version: i32,
    /// The first places at which it does not fit.
    pub violations: Vec<Violation>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for SchemaRefusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Breaks schema {} version {}: ", self.subject, self.version)?;
        for (index, violation) in self.violations.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{violation}")?;
        }
        if self.more > 0 {
            write!(formatter, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for SchemaRefusal {}

/// Why a payload did not pass.
#[derive(Debug, thiserror::Error)]
pub enum NotChecked {
    /// It does not fit; no other attempt can do better.
    #[error("{0}")]
    Refused(SchemaRefusal),
    /// The message names a version that its subject does not have.
    #[error("There is no version {version} of schema {subject}")]
    NoSuchVersion {
        /// Whose schema.
        subject: SchemaSubject,
        /// What the message names.
        version: String,
    },
    /// The schema is in the database but cannot be used, since it was not registered through this library.
    #[error("Schema {subject} version {version} cannot be used: {reason}")]
    Unusable {
        /// Whose schema.
        subject: SchemaSubject,
        /// Which version.
        version: i32,
        /// Why not.
        reason: String,
    },
    /// The schemas in memory are too old to judge by, and the database does not answer.
    #[error("The schemas could not be read")]
    Unavailable(#[source] Error),
}

impl NotChecked {
    /// Whether the same payload would be refused whenever it is tried.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::NoSuchVersion { .. })
    }
}
