//! What the front door can be told, beside the settings of every process.

use cogo_service_runtime::Secret;
use serde::{Deserialize, Serialize};

/// Settings of the front door.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Keys that callers may present: `key` acts for every tenant, `tenant:key` for that one only. The last colon
    /// divides, so a key holds none. Empty: open on a loopback address, no start on any other.
    pub api_keys: Vec<Secret>,
}
