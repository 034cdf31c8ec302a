//! Asks processes on this machine whether they are ready.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;

use crate::{
    failure::Failure,
    fleet::{FleetState, ProcessState},
};

/// A process on the same machine answers at once, or is too busy to be called ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a look at a process showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// It does its work.
    Ready,
    /// It runs, but does not do its work yet or any more.
    Waiting,
    /// It does not run.
    Down,
    /// It does not run because an operator drained it.
    Drained,
    /// It runs and claims nothing, because an operator ordered it.
    Suspended,
}

impl Readiness {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Down => "down",
            Self::Drained => "drained",
            Self::Suspended => "suspended",
        }
    }

    /// Whether it is as it shall be: what an operator put down is not missing.
    pub(crate) const fn is_as_meant(self) -> bool {
        matches!(self, Self::Ready | Self::Drained | Self::Suspended)
    }
}

pub(crate) fn probe_client() -> Result<reqwest::Client, Failure> {
    cogo_model_client::http_client("http://127.0.0.1", PATIENCE)
        .map_err(|error| Failure::failed("Could not build the HTTP client").because(&error))
}

/// Looks at every process at once, in the order of the state.
pub(crate) async fn readiness(client: &reqwest::Client, state: &FleetState) -> Vec<Readiness> {
    join_all(state.processes.iter().map(|process| readiness_of(client, process))).await
}

/// Looks at one process.
pub(crate) async fn readiness_of(client: &reqwest::Client, process: &ProcessState) -> Readiness {
    if process.living().is_none() {
        return if process.drained { Readiness::Drained } else { Readiness::Down };
    }
    let answer = client.get(format!("{}/readyz", process.url())).timeout(PATIENCE).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Readiness::Ready,
        // it says itself that it does not work
        Ok(_) if process.suspended => Readiness::Suspended,
        _ => Readiness::Waiting,
    }
}
