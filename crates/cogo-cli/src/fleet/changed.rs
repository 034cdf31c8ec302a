//! What became of a wish to change the fleet.

use cogo_supervision::core::CallError;
use serde::{Deserialize, Serialize};

use crate::{failure::Failure, fleet::target::Target};

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// Path of what was named.
    pub(crate) target: String,
    /// Whether anything had to be done.
    pub(crate) changed: bool,
    /// Whether the database knows of it, so that it outlives this `cogo up`.
    pub(crate) kept: bool,
    /// What it consists of now.
    pub(crate) instances: Vec<ChangedInstance>,
}

/// One instance after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedInstance {
    pub(crate) path: String,
    pub(crate) state: String,
    pub(crate) pid: Option<u32>,
    pub(crate) last_exit: Option<String>,
}

pub(crate) fn no_instance(target: &Target) -> Failure {
    Failure::not_found(format!("There is no instance {}", target.path())).hint("`cogo tree` shows which there are")
}

/// What the tree would not do.
pub(crate) fn refused(target: &Target, error: &CallError) -> Failure {
    let path = target.path();
    match error {
        CallError::NoSuchGroup { path: above } => {
            let above = above.rsplit('/').next().unwrap_or_default().to_owned();
            Failure::conflict(format!("{path} is part of {above}, which is down"))
                .hint(format!("`cogo restart {above}` starts it"))
        }
        CallError::NotFound { .. } => no_instance(target),
        CallError::Ended => Failure::conflict("The fleet is stopping").hint("`cogo up` starts it again"),
        CallError::StartFailed { .. } => Failure::failed(format!("{path} did not start")).because(error),
        other => Failure::conflict(format!("{path} cannot be changed now")).because(other).hint("try again"),
    }
}
