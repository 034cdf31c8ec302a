//! The frames between manager and worker.

use cogo_contracts::{SandboxEvent, SandboxRequest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most bytes of a job's standard output, and as many of its standard error, that are kept.
pub const OUTPUT_CAP: usize = 256 * 1024;

/// Frames to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Start a command.
    Run {
        /// Key of this run; unlike that of any other.
        job: Uuid,
        /// What to run.
        request: SandboxRequest,
    },
    /// Kill a command.
    Stop {
        /// Key of the run.
        job: Uuid,
    },
}

/// Frames from a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToManager {
    /// The first frame.
    Hello {
        /// Jobs that it takes at once, at least 1.
        slots: u16,
    },
    /// Something happened to a job.
    Event {
        /// Key of the run.
        job: Uuid,
        /// What happened.
        event: SandboxEvent,
    },
}
