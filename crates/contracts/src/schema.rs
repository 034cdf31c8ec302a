//! What has a schema, and what the next version of it must keep.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Invalid, Route};

/// Which of the two bodies of a route is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The payload of a message.
    Request,
    /// The result of one.
    Reply,
}

impl Direction {
    /// Its name in the database and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Reply => "reply",
        }
    }
}

/// One direction of a route, whatever its shard: what schemas are registered for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaSubject {
    route: Route,
    direction: Direction,
}

impl SchemaSubject {
    /// The payloads or the results of a route.
    #[must_use]
    pub fn new(route: &Route, direction: Direction) -> Self {
        Self { route: route.on_shard(0), direction }
    }

    /// The route, shard 0.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Which of its two bodies.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }
}

impl fmt::Display for SchemaSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.route.service(), self.route.role(), self.direction.as_str())
    }
}

impl FromStr for SchemaSubject {
    type Err = Invalid;

    /// Reads `service/role/request` or `service/role/reply`; `service/role` is the request.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (route, direction) = match text.rsplit_once('/') {
            Some((route, "request")) if route.contains('/') => (route, Direction::Request),
            Some((route, "reply")) if route.contains('/') => (route, Direction::Reply),
            _ => (text, Direction::Request),
        };
        let rule = "a subject is service/role, service/role/request or service/role/reply";
        match route.split_once('/') {
            Some((service, role)) if !role.contains('/') => Ok(Self::new(&Route::new(service, role, 0)?, direction)),
            _ => Err(Invalid::new("subject", text, rule)),
        }
    }
}

/// What the next version of a schema must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compatibility {
    /// Nothing.
    None,
    /// Whoever knows the new version can read what was written by the one before.
    Backward,
    /// Whoever knows the version before can read what is written by the new one.
    Forward,
    /// Both.
    Full,
    /// [`Backward`](Self::Backward), towards every version.
    BackwardTransitive,
    /// [`Forward`](Self::Forward), towards every version.
    ForwardTransitive,
    /// [`Full`](Self::Full), towards every version.
    FullTransitive,
}

impl Compatibility {
    /// Every rule, the laxest first.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Backward,
        Self::Forward,
        Self::Full,
        Self::BackwardTransitive,
        Self::ForwardTransitive,
        Self::FullTransitive,
    ];

    /// Its name in the database and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Backward => "backward",
            Self::Forward => "forward",
            Self::Full => "full",
            Self::BackwardTransitive => "backward_transitive",
            Self::ForwardTransitive => "forward_transitive",
            Self::FullTransitive => "full_transitive",
        }
    }

    /// Whether the new version must accept what an earlier one accepts.
    #[must_use]
    pub const fn reads_old_data(self) -> bool {
        matches!(self, Self::Backward | Self::Full | Self::BackwardTransitive | Self::FullTransitive)
    }

    /// Whether an earlier version must accept what the new one accepts.
    #[must_use]
    pub const fn is_read_by_old(self) -> bool {
        matches!(self, Self::Forward | Self::Full | Self::ForwardTransitive | Self::FullTransitive)
    }

    /// Whether every earlier version counts, not only the newest.
    #[must_use]
    pub const fn is_transitive(self) -> bool {
        matches!(self, Self::BackwardTransitive | Self::ForwardTransitive | Self::FullTransitive)
    }
}

impl fmt::Display for Compatibility {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Compatibility {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let rule = "it is none, backward, forward, full or one of the last three with _transitive";
        let found = Self::ALL.into_iter().find(|rule| rule.as_str() == text);
        found.ok_or_else(|| Invalid::new("compatibility", text, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read_as_they_are_written() {
        for text in ["rag/embed/request", "gateway/chat/reply", "a/reply/request", "a/request/reply"] {
            assert_eq!(text.parse::<SchemaSubject>().unwrap().to_string(), text);
        }
        assert_eq!("rag/embed".parse::<SchemaSubject>().unwrap().direction(), Direction::Request);
        assert_eq!("rag/reply".parse::<SchemaSubject>().unwrap().to_string(), "rag/reply/request");
        for bad in ["", "rag", "rag/embed/answer", "rag/embed/0/reply", "Rag/embed", "rag//reply"] {
            assert!(bad.parse::<SchemaSubject>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_keep_their_names() {
        for rule in Compatibility::ALL {
            assert_eq!(rule.as_str().parse(), Ok(rule));
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
        }
        assert!("upward".parse::<Compatibility>().is_err());
    }
}
