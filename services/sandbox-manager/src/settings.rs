//! What the sandbox manager can be told, beside the settings of every process.

use cogo_service_runtime::Secret;
use serde::{Deserialize, Serialize};

/// Settings of the sandbox manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Token that workers and readers of live output present; absent: callers on this machine only, without one.
    pub worker_token: Option<Secret>,
    /// Whether commands may run in this process's own worker, as its user and without isolation, when no worker is
    /// connected.
    pub allow_local: bool,
    /// Commands that the own worker runs at once.
    pub local_slots: u16,
    /// `PATH` of commands in the own worker, the only variable that they get.
    pub command_path: String,
    /// Time in ms between two pings; a worker that is silent for two of them is dropped.
    pub heartbeat_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            worker_token: None,
            allow_local: false,
            local_slots: 4,
            command_path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            heartbeat_ms: 10_000,
        }
    }
}
