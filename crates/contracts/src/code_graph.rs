//! Request and reply of kg/build.

use serde::{Deserialize, Serialize};

/// Payload of kg/build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// Name under which the tree is known, the same as its collection in retrieval.
    pub repo: String,
    /// Absolute path on the worker's machine, below an allowed root.
    pub root: String,
}

/// Result of kg/build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReply {
    /// Source files looked at.
    pub files: u64,
    /// Of those, extracted anew.
    pub changed: u64,
    /// Definitions and files in the graph.
    pub nodes: u64,
    /// Edges in the graph.
    pub edges: u64,
    /// References that could not be resolved; stored, never dropped.
    pub unresolved: u64,
}
