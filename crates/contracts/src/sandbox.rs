//! Request, reply and events of sandbox/run.

use serde::{Deserialize, Serialize};

/// How far a command is shut off from its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Not at all: it runs as the worker's user.
    #[default]
    None,
    /// In namespaces of its own.
    Namespaces,
    /// In a virtual machine.
    Vm,
}

/// Payload of sandbox/run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRequest {
    /// Program and arguments; no shell in between.
    pub command: Vec<String>,
    /// Wall-clock limit in ms.
    pub limit_ms: u64,
    /// Text for its standard input.
    #[serde(default)]
    pub stdin: String,
    /// Least isolation that the sender accepts.
    #[serde(default)]
    pub isolation: Isolation,
}

/// What a sandbox worker sends about a job; exactly one of the last three ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SandboxEvent {
    /// The command runs.
    Started,
    /// Bytes of standard output, as lossy UTF-8.
    Stdout {
        /// The text.
        text: String,
    },
    /// Bytes of standard error, as lossy UTF-8.
    Stderr {
        /// The text.
        text: String,
    },
    /// It ended by itself.
    Exited {
        /// Its exit code; none if a signal ended it.
        code: Option<i32>,
    },
    /// It was killed at the wall-clock limit.
    TimedOut,
    /// It could not be started or watched.
    Failed {
        /// Why.
        reason: String,
    },
}

impl SandboxEvent {
    /// Whether the job is over with this event.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::TimedOut | Self::Failed { .. })
    }
}

/// Result of sandbox/run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReply {
    /// The one terminal event.
    pub end: SandboxEvent,
    /// Standard output, cut at the worker's limit.
    pub stdout: String,
    /// Standard error, cut likewise.
    pub stderr: String,
    /// Whether something was cut.
    pub truncated: bool,
    /// Wall-clock time in ms.
    pub run_ms: u64,
    /// What the command was run in.
    pub isolation: Isolation,
}
