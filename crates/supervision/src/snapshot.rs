//! A picture of a tree at one moment.

use std::time::Duration;

use serde::Serialize;

use crate::{Exit, Strategy};

/// One child or group, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name; empty for the root group.
    pub name: String,
    /// Its names from the top, joined by `/`.
    pub path: String,
    /// Its strategy if it is a group.
    pub strategy: Option<Strategy>,
    /// What it is doing.
    pub state: NodeState,
    /// When that state began, since the tree began.
    pub since: Duration,
    /// How often its supervisor has started it again.
    pub restarts: u32,
    /// Its last end, if it ever ended.
    pub last_exit: Option<LastExit>,
    /// The number of its process, if it has one now.
    pub pid: Option<u32>,
    /// Whether it was added while the tree ran; such a child is forgotten when its group is restarted.
    pub dynamic: bool,
    /// Whether it stays down until it, or a group above it, is asked for by name.
    pub parked: bool,
    /// Its children in the order of their start.
    pub children: Vec<Node>,
}

impl Node {
    /// The node at this path below (and including) this one.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Self> {
        if self.path == path {
            return Some(self);
        }
        self.children.iter().find_map(|child| child.find(path))
    }

    /// Itself and everything below, parents first.
    #[must_use]
    pub fn flatten(&self) -> Vec<&Self> {
        let mut nodes = vec![self];
        nodes.extend(self.children.iter().flat_map(Self::flatten));
        nodes
    }
}

/// What a child is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It ended and its supervisor has not decided yet.
    Ended,
    /// It is being stopped.
    Stopping,
    /// It will be started again.
    Restarting,
    /// It is down and stays down until somebody asks for it or its siblings take it along.
    Stopped,
}

/// The last end of a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastExit {
    /// How.
    pub exit: Exit,
    /// When, since the tree began.
    pub at: Duration,
}
