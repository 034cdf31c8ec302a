//! Identity, state and place of an agent.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Who a process is: its slot in the fleet and the one run that fills it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentId {
    /// Domain, such as `rag`.
    pub domain: String,
    /// Name of the process without prefix, such as `rag-embed`.
    pub name: String,
    /// Which replica, from 0; one owner at a time.
    pub slot: i32,
    /// This run of the process.
    pub instance_id: Uuid,
    /// Version of the program.
    pub version: semver::Version,
}

impl AgentId {
    /// The name under which this run claims messages; unlike that of any other run.
    #[must_use]
    pub fn holder(&self) -> String {
        format!("{}/{}#{}", self.name, self.slot, self.instance_id.simple())
    }

    /// The name by which others may address it, stable over restarts.
    #[must_use]
    pub fn instance(&self) -> String {
        format!("{}/{}", self.name, self.slot)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}@{}", self.name, self.slot, self.version)
    }
}

/// State of an agent in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Known, not claiming yet.
    Registered,
    /// Claims work.
    Active,
    /// Missed beats for 15 s; gets no direct work.
    Suspect,
    /// Told to pause.
    Suspended,
    /// Finishes what it has.
    Draining,
    /// Deregistered, superseded or dead.
    Terminated,
}

impl AgentState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 6] =
        [Self::Registered, Self::Active, Self::Suspect, Self::Suspended, Self::Draining, Self::Terminated];

    /// Its name in the database and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Active => "active",
            Self::Suspect => "suspect",
            Self::Suspended => "suspended",
            Self::Draining => "draining",
            Self::Terminated => "terminated",
        }
    }

    /// The state of this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Kind of machine that a process found itself on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// In a container.
    Container,
    /// On a cloud machine.
    Cloud,
    /// On a plain host.
    #[default]
    Host,
}

/// Where an agent runs and what it has there; what an agent of another language leaves out is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    /// Detected kind of machine.
    pub environment: Environment,
    /// Host name.
    pub host: String,
    /// Region, where the environment tells.
    pub region: Option<String>,
    /// Logical processors that it may use.
    pub cpus: u32,
    /// Memory in bytes that it may use.
    pub memory_bytes: u64,
    /// Process id on that host.
    pub pid: u32,
}

/// An address under which an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What is spoken there: `http`, `ws` or `grpc`.
    pub protocol: String,
    /// Its URL.
    pub url: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_may_tell_nothing() {
        assert_eq!(serde_json::from_str::<Location>("{}").ok(), Some(Location::default()));
    }
}
