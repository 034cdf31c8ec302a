//! What clients of the bus did and what they were told, one call at a time.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A message as its sender described it, as far as the checker needs it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Id that the sender chose, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Whose it is.
    pub tenant: String,
    /// Idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What tells its payload from that of every other message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// One claim of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Held {
    /// The message.
    pub id: Uuid,
    /// Number of the claim, from 1.
    pub attempt: i16,
}

/// A completion that a worker asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// The claim that it ends.
    pub held: Held,
    /// The reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// How many messages it sends in the same transaction.
    #[serde(default)]
    pub follow_ups: usize,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Operation {
    /// Sends messages in one statement: all or none.
    Enqueue {
        /// In the order of the call.
        messages: Vec<Sent>,
    },
    /// Takes messages.
    Claim {
        /// For whom.
        holder: String,
        /// How long they are to be owned, in ms.
        lease_ms: i64,
    },
    /// Renews leases.
    Extend {
        /// Whose.
        holder: String,
        /// Which.
        held: Vec<Held>,
        /// From now, in ms.
        lease_ms: i64,
    },
    /// Records completions: those that are still the holder's.
    Complete {
        /// Whose.
        holder: String,
        /// Which.
        ended: Vec<Ending>,
    },
    /// Ends an attempt with an error.
    Fail {
        /// Whose.
        holder: String,
        /// Which.
        held: Held,
        /// Whether another attempt may follow.
        retriable: bool,
    },
    /// Hands claims back.
    Release {
        /// Whose.
        holder: String,
        /// Which.
        held: Vec<Held>,
    },
    /// Cancels what is unfinished of a task.
    Cancel {
        /// The task.
        root: Uuid,
    },
    /// Sends a dead letter again.
    Replay {
        /// The dead letter.
        dead_letter: Uuid,
    },
    /// Takes back what has an expired lease.
    Reclaim,
    /// Turns what has passed its time to live into dead letters.
    Expire,
    /// Takes everything from a holder that is gone.
    RequeueHeld {
        /// The one that is gone.
        holder: String,
    },
    /// Removes finished tasks.
    Retain {
        /// Those that ended longer ago than this, in ms.
        keep_ms: u64,
    },
    /// Takes over a slot of the registry.
    Register {
        /// Name of the agent.
        name: String,
        /// Its slot.
        slot: u32,
    },
}

/// What the bus answered for one message of an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Id of the message; under a known key that of the first.
    pub id: Uuid,
    /// Whether the key was known.
    pub duplicate: bool,
}

/// What the bus handed to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// The claim.
    pub held: Held,
    /// Whose message it is.
    pub tenant: String,
    /// Milliseconds left of its time to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<i64>,
    /// What tells its payload from that of every other message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// A good answer, by the kind of the operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Of an enqueue, in its order.
    Enqueued(Vec<Accepted>),
    /// Of a claim.
    Taken(Vec<Taken>),
    /// Of an extension or completion: those that were still the holder's.
    Still(Vec<Uuid>),
    /// Of a failure: none if the claim was lost, else whether another attempt follows.
    Settled(Option<bool>),
    /// How many messages a release, a cancel or a chore concerned.
    Count(u64),
    /// Of a replay: the new message.
    Replayed(Uuid),
    /// Of a registration.
    Member {
        /// Name of this run.
        holder: String,
        /// Number of the run in its slot.
        epoch: i64,
    },
}

/// How a call ended as far as the client knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It was not done, for certain.
    Failed(String),
    /// It may have been done, or may yet be.
    Unknown(String),
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the client.
    pub process: String,
    /// Number of the call within its client.
    pub number: u64,
    /// When it was made, by the clock of the machine, in microseconds of the Unix epoch.
    pub invoked_us: i64,
    /// When the client believed to make it, in milliseconds; wrong when its clock is.
    pub client_ms: i64,
    /// What was asked.
    pub operation: Operation,
    /// What came back.
    pub outcome: Outcome,
    /// When that came back; none if nothing did.
    pub returned_us: Option<i64>,
}

impl Call {
    /// The answer, if there was a good one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Failed(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Whether nobody can tell what became of it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self.outcome, Outcome::Unknown(_))
    }

    /// Whether it was done or may have been.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed(_))
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut asked = serde_json::to_string(&self.operation).unwrap_or_default();
        shorten(&mut asked);
        let mut told = serde_json::to_string(&self.outcome).unwrap_or_default();
        shorten(&mut told);
        let took = self.returned_us.map_or(-1, |returned| returned - self.invoked_us);
        write!(
            formatter,
            "{}#{} at {} us: {asked} -> {told} after {took} us",
            self.process, self.number, self.invoked_us
        )
    }
}

/// Longest text of a call in a report; batches of hundreds would hide what matters.
const MOST_BYTES_SHOWN: usize = 400;

fn shorten(text: &mut String) {
    if text.len() > MOST_BYTES_SHOWN {
        let mut end = MOST_BYTES_SHOWN;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}
