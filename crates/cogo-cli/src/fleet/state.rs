//! What a running `cogo up` tells other commands through `state.json`.

use std::path::PathBuf;

use cogo_registry_core::StandingOrder;
use serde::{Deserialize, Serialize};

use crate::proc_files::Identity;

/// Which database the fleet uses; never its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum DatabaseReference {
    /// The one in this directory, whose password stands there.
    Embedded { directory: PathBuf },
    /// Somebody else's; its address stands in a file that only the owner can read.
    External { url_file: PathBuf },
}

/// How far the fleet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// One process of the fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessState {
    pub(crate) name: String,
    /// Its path in the supervision tree; empty in the state of an older build.
    #[serde(default)]
    pub(crate) path: String,
    /// 0 until one is chosen.
    pub(crate) port: u16,
    pub(crate) log: PathBuf,
    /// What it runs.
    #[serde(default)]
    pub(crate) program: PathBuf,
    /// The run that lives, if one does.
    pub(crate) running: Option<Identity>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// How its last run ended.
    pub(crate) last_end: Option<String>,
    /// Whether an operator drained it, so that it is meant to be down.
    #[serde(default)]
    pub(crate) drained: bool,
    /// Whether it was ordered to claim nothing, so that it is not meant to be ready.
    #[serde(default)]
    pub(crate) suspended: bool,
}

impl ProcessState {
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The run that lives now, asked of the system.
    pub(crate) fn living(&self) -> Option<&Identity> {
        self.running.as_ref().filter(|identity| identity.is_alive())
    }
}

/// The fleet as its `cogo up` sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FleetState {
    /// The `cogo up` that holds the fleet.
    pub(crate) up: Option<Identity>,
    pub(crate) phase: Phase,
    /// Seconds from its start until every process was ready.
    pub(crate) ready_after_s: Option<f64>,
    pub(crate) port_offset: u16,
    pub(crate) database: DatabaseReference,
    /// In the order of their start.
    pub(crate) processes: Vec<ProcessState>,
    /// What operators ordered and did not take back.
    #[serde(default)]
    pub(crate) orders: Vec<StandingOrder>,
}

impl FleetState {
    /// A fleet of this very process that has started nothing yet.
    pub(crate) fn new(database: DatabaseReference, port_offset: u16) -> Self {
        let program = std::env::current_exe().unwrap_or_default();
        Self {
            up: Identity::of(std::process::id(), &program),
            phase: Phase::Starting,
            ready_after_s: None,
            port_offset,
            database,
            processes: Vec::new(),
            orders: Vec::new(),
        }
    }

    /// The `cogo up` that lives now, asked of the system.
    pub(crate) fn living_up(&self) -> Option<&Identity> {
        self.up.as_ref().filter(|identity| identity.is_alive())
    }
}
