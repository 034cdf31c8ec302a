//! A task: the tree of messages under one root, as `bus.task` answers it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::MessageStatus;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskStatus {
    /// Nothing of it was started yet.
    Queued,
    /// Some step is waiting or being worked on.
    Running,
    /// Every leaf is done.
    Done,
    /// A leaf is a dead letter.
    Failed,
    /// It was taken back.
    Cancelled,
}

impl TaskStatus {
    /// Whether nothing will change any more, short of a replay.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A task with all its steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Id of the root message, the one answered with 202.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: String,
    /// Where it stands.
    pub status: TaskStatus,
    /// When the root was enqueued.
    pub created_at: DateTime<Utc>,
    /// When the last step ended, once all have.
    pub finished_at: Option<DateTime<Utc>>,
    /// Error of the last leaf.
    pub error: Option<String>,
    /// Result of the last leaf.
    pub result: Option<Value>,
    /// Where a large result stands.
    pub result_url: Option<String>,
    /// Every message of the tree, oldest first.
    pub steps: Vec<Step>,
}

/// One message of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Id of the message.
    pub id: Uuid,
    /// The message whose handler sent it.
    pub parent_id: Option<Uuid>,
    /// The dead letter that it runs again.
    pub replay_of: Option<Uuid>,
    /// First part of its routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: u16,
    /// Its state.
    pub status: MessageStatus,
    /// Claims so far.
    pub attempts: i16,
    /// Holder of the current or last claim.
    pub claimed_by: Option<String>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it was last claimed.
    pub claimed_at: Option<DateTime<Utc>>,
    /// Not claimed before.
    pub retry_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub done_at: Option<DateTime<Utc>>,
    /// Its last error.
    pub error: Option<String>,
    /// Start of its result.
    pub result_snippet: Option<String>,
}
