//! How large a pool is and what it lends to whom.

use std::time::Duration;

use super::Strategy;

/// Limits of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Never fewer members than this.
    pub min: usize,
    /// Never more members than this, overflow aside.
    pub max: usize,
    /// How many members to begin with.
    pub target: usize,
    /// Members beyond the target that may help out while all are busy.
    pub overflow: usize,
    /// A helper that was idle this long goes.
    pub overflow_idle: Duration,
    /// At most this many leases of one member at once.
    pub per_member: usize,
    /// At most this many leases of one tenant at once.
    pub quota: usize,
    /// At most this many may wait.
    pub waiting: usize,
    /// Nobody waits longer than this.
    pub patience: Duration,
    /// Who is picked.
    pub strategy: Strategy,
    /// After a member could not be made: the first pause, doubled with each failure in a row.
    pub retry_first: Duration,
    /// The longest such pause.
    pub retry_longest: Duration,
}

impl Default for Settings {
    /// One member that works on one thing, no helpers, no quota, 64 may wait for at most 10 s; pauses of 100 ms to 30 s.
    fn default() -> Self {
        Self {
            min: 1,
            max: 1,
            target: 1,
            overflow: 0,
            overflow_idle: Duration::from_secs(10),
            per_member: 1,
            quota: usize::MAX,
            waiting: 64,
            patience: Duration::from_secs(10),
            strategy: Strategy::LeastLoaded,
            retry_first: Duration::from_millis(100),
            retry_longest: Duration::from_secs(30),
        }
    }
}

/// Which rule the settings of a pool break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The bounds contradict each other.
    #[error("Pool has min {min} above max {max}")]
    MinAboveMax {
        /// As given.
        min: usize,
        /// As given.
        max: usize,
    },
    /// The target is not within the bounds.
    #[error("Pool has target {target} outside of {min} to {max}")]
    Target {
        /// As given.
        target: usize,
        /// As given.
        min: usize,
        /// As given.
        max: usize,
    },
    /// A number must not be 0.
    #[error("Pool has {setting} 0")]
    Zero {
        /// Name of the setting.
        setting: &'static str,
    },
}

impl Settings {
    /// Checks what the rules rely on.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), Invalid> {
        let Self { min, max, target, .. } = *self;
        if min > max {
            return Err(Invalid::MinAboveMax { min, max });
        }
        if target < min || target > max {
            return Err(Invalid::Target { target, min, max });
        }
        for (setting, value) in [("per_member", self.per_member), ("quota", self.quota)] {
            if value == 0 {
                return Err(Invalid::Zero { setting });
            }
        }
        if self.retry_first.is_zero() {
            return Err(Invalid::Zero { setting: "retry_first" });
        }
        Ok(())
    }

    /// The pause after so many failures in a row.
    pub(crate) fn retry_pause(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.retry_first.saturating_mul(factor).min(self.retry_longest.max(self.retry_first))
    }
}
