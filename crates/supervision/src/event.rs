//! What a tree tells of itself.

use std::time::Duration;

use serde::Serialize;

use crate::Exit;

/// Something that happened to a child or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When, since the tree began.
    pub at: Duration,
    /// Whom: names from the top, joined by `/`; empty for the root group.
    pub path: String,
    /// What.
    #[serde(flatten)]
    pub happened: Happened,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happened {
    /// It is being started.
    Starting,
    /// It has a process now, which need not be ready.
    Spawned {
        /// The number of the process.
        pid: u32,
    },
    /// It counts as started.
    Started {
        /// How often it has been started again by its supervisor.
        restarts: u32,
    },
    /// It could not be started.
    StartFailed {
        /// Why.
        reason: String,
    },
    /// It ended, by itself or because it was told to.
    Exited {
        /// How.
        exit: Exit,
    },
    /// It will be started again after a pause.
    RestartPlanned {
        /// The pause.
        pause: Duration,
    },
    /// It was told to stop.
    Stopping,
    /// It did not stop or start in time, or is not asked, and was killed.
    Killing,
    /// It could not even be killed. The tree ends, because only the end of the whole process removes it.
    Leaked,
    /// A group has restarted too often: it stops its children and leaves the decision to its parent.
    GaveUp {
        /// The child whose restart was one too many.
        child: String,
        /// How many restarts were allowed in the period.
        intensity: u32,
        /// The period.
        period: Duration,
    },
    /// A group ends because its significant children have.
    AutoShutdown {
        /// The child that was the last reason.
        child: String,
    },
}

/// Why a tree is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// It was asked to.
    Shutdown,
    /// The root group restarted its children too often.
    GaveUp,
    /// The significant children of the root group ended.
    AutoShutdown,
    /// A child did not start when the tree began.
    StartFailed {
        /// Which, from the top.
        child: String,
        /// Why.
        reason: String,
    },
    /// These could not be killed and may still run: the process that holds the tree must end.
    Leaked {
        /// Their paths.
        paths: Vec<String>,
    },
    /// The runtime that drove it was shut down under it.
    Abandoned,
}
