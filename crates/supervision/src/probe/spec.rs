//! What is asked, how often, and how many answers make a verdict.

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Serialize};

/// What a probe is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Whether it has come up; asked until it succeeds, and nothing else before.
    Startup,
    /// Whether a restart would help.
    Liveness,
    /// Whether it can take work.
    Readiness,
    /// Something of one's own that work depends on: failing it is not ready.
    Critical,
    /// Something of one's own that is worth knowing: failing it is degraded.
    Advisory,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Names it in reasons.
    pub name: String,
    /// What it is about.
    pub kind: Kind,
    /// Time before it is asked first.
    pub initial_delay: Duration,
    /// Time from one asking to the next.
    pub period: Duration,
    /// No answer within this is a failure.
    pub timeout: Duration,
    /// So many failures in a row make it fail.
    pub failure_threshold: u32,
    /// So many successes in a row make it pass.
    pub success_threshold: u32,
}

/// Why probes cannot be used together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Reasons could not be told apart.
    #[error("Two probes are named {name}")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A number must not be 0.
    #[error("Probe {name} has {setting} 0")]
    Zero {
        /// The probe.
        name: String,
        /// Name of the setting.
        setting: &'static str,
    },
}

impl Spec {
    /// Asked every 5 s, within 3 s, three failures, one success.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(5),
            timeout: Duration::from_secs(3),
            failure_threshold: 3,
            success_threshold: 1,
        }
    }

    pub(super) fn validate_all(specs: &[Self]) -> Result<(), Invalid> {
        let mut names = HashSet::new();
        for spec in specs {
            let name = spec.name.clone();
            let zeros = [
                ("period", spec.period.is_zero()),
                ("timeout", spec.timeout.is_zero()),
                ("failure_threshold", spec.failure_threshold == 0),
                ("success_threshold", spec.success_threshold == 0),
            ];
            if let Some((setting, _)) = zeros.into_iter().find(|(_, is_zero)| *is_zero) {
                return Err(Invalid::Zero { name, setting });
            }
            if !names.insert(spec.name.as_str()) {
                return Err(Invalid::Duplicate { name });
            }
        }
        Ok(())
    }
}
