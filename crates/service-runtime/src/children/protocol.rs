//! What a child and its parent say to each other: one JSON object in each text frame.

use std::fmt;

use cogo_contracts::Location;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Frames larger than this break the connection.
pub(super) const MAX_FRAME_BYTES: usize = 1024 * 1024;

/// How a child shows that it may connect.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// The agent key of its name: for the first time, and whenever the token is no longer good.
    Key(String),
    /// The token that it was given last: it goes on as the same run.
    Token(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Key(_) => "Key(***)",
            Self::Token(_) => "Token(***)",
        })
    }
}

/// How a child introduces itself, in its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Name of the agent, `[a-z][a-z0-9-]{0,62}`.
    pub name: String,
    /// Which replica, from 0.
    #[serde(default)]
    pub slot: u16,
    /// Version of its program.
    pub version: semver::Version,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Words to find it by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where it runs; absent: where its parent does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// Why it may.
    pub credential: Credential,
}

/// What the registry, and so whoever steers the fleet, wants of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Claim work: what it does from its welcome on, and again after `cogo resume`.
    Work,
    /// Finish what it has and claim nothing, as after `cogo suspend`.
    Pause,
    /// Finish what it has and leave for good, as after `cogo drain`.
    Leave,
}

impl Order {
    /// Its name on the wire and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Pause => "pause",
            Self::Leave => "leave",
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What a child says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToParent {
    /// First of all.
    Hello(Hello),
    /// It lives.
    Heartbeat {
        /// Counts its beats.
        sequence: u64,
        /// Messages that it works on.
        #[serde(default)]
        in_flight: u32,
    },
    /// It does from now on as it was told.
    Obeys {
        /// What it was told.
        order: Order,
        /// Messages that it still works on.
        #[serde(default)]
        in_flight: u32,
    },
    /// It goes for good, because it was told to leave or of its own accord. Whatever it still holds is queued again.
    Left,
    /// Something for the parent.
    Message {
        /// What.
        body: Value,
    },
}

/// What the parent says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToChild {
    /// The child is in the registry.
    Welcome {
        /// Its run.
        instance_id: Uuid,
        /// Name of the run in the registry.
        holder: String,
        /// How many owners its slot has had.
        epoch: i64,
        /// Shows who it is, to the parent and to others that verify tokens; renewed by the answers to heartbeats.
        token: String,
    },
    /// Answers a heartbeat.
    Heartbeat {
        /// Of which.
        sequence: u64,
        /// A younger token, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
    /// What is wanted of it: told after each welcome and whenever it changes.
    Order {
        /// What.
        order: Order,
    },
    /// It is out of the registry, as it said that it would be; the connection ends.
    Released,
    /// Something for the child.
    Message {
        /// What.
        body: Value,
    },
    /// The connection ends.
    Refused {
        /// Why.
        reason: String,
        /// Whether to try again.
        again: Again,
    },
}

impl fmt::Debug for ToChild {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Welcome { holder, epoch, .. } => write!(formatter, "Welcome({holder}, {epoch})"),
            Self::Heartbeat { sequence, .. } => write!(formatter, "Heartbeat({sequence})"),
            Self::Order { order } => write!(formatter, "Order({order})"),
            Self::Released => formatter.write_str("Released"),
            Self::Message { body } => write!(formatter, "Message({body})"),
            Self::Refused { reason, again } => write!(formatter, "Refused({reason}, {again:?})"),
        }
    }
}

/// Whether a child that was turned away may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Again {
    /// With its key: the token is no longer good.
    WithKey,
    /// As it is, later.
    Later,
    /// Not like this.
    Never,
}
