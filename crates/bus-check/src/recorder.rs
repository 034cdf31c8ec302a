//! The bus with a journal: every call is noted before it is made, and what came back after it.

use std::{future::Future, time::Duration};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, Enqueued, Error, Failure, Fence, Settled};
use cogo_contracts::NewMessage;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    history::{Accepted, Answer, Ending, Held, Operation, Outcome, Sent, Taken},
    journal::Journal,
};

/// A bus whose calls are recorded.
#[derive(Debug, Clone)]
pub struct RecordedBus {
    bus: Bus,
    journal: Journal,
    /// After this a call is given up and its outcome is unknown.
    patience: Duration,
}

/// Why a recorded call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The bus said so.
    #[error(transparent)]
    Bus(#[from] Error),
    /// It took too long and was given up; what it does on the server is unknown.
    #[error("No answer within the patience of the caller")]
    GivenUp,
}

impl Broken {
    /// Whether the call may have been done all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(outcome_of(self), Outcome::Unknown(_))
    }
}

/// Longer than any healthy call takes.
const PATIENCE: Duration = Duration::from_secs(60);

impl RecordedBus {
    /// Records what is done through this pool.
    #[must_use]
    pub fn new(pool: PgPool, journal: Journal) -> Self {
        Self { bus: Bus::new(pool), journal, patience: PATIENCE }
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// After which a call is given up.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The bus below, for what need not be recorded.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Where it is recorded.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Records any call: `answer` turns what came back into what the checker reads.
    ///
    /// # Errors
    /// As the call.
    pub async fn record<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, Error>>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> Result<T, Broken> {
        let number = self.journal.invoked(operation);
        let told = match tokio::time::timeout(self.patience, call).await {
            Ok(told) => told.map_err(Broken::from),
            Err(_) => Err(Broken::GivenUp),
        };
        let outcome = match &told {
            Ok(value) => Outcome::Ok(answer(value)),
            Err(broken) => outcome_of(broken),
        };
        self.journal.returned(number, outcome);
        told
    }

    /// [`Bus::enqueue_many`].
    ///
    /// # Errors
    /// As the call.
    pub async fn enqueue_many(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, Broken> {
        self.record(enqueue(messages), self.bus.enqueue_many(messages), |sent| enqueued(sent)).await
    }

    /// [`Bus::claim`].
    ///
    /// # Errors
    /// As the call.
    pub async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<Claimed>, Broken> {
        let lease_ms = milliseconds(request.lease);
        let asked = Operation::Claim { holder: request.holder.to_owned(), lease_ms };
        self.record(asked, self.bus.claim(request), |claimed| taken(claimed)).await
    }

    /// [`Bus::extend`].
    ///
    /// # Errors
    /// As the call.
    pub async fn extend(&self, fences: &[Fence], holder: &str, lease: Duration) -> Result<Vec<Uuid>, Broken> {
        let held = fences.iter().map(held).collect();
        let asked = Operation::Extend { holder: holder.to_owned(), held, lease_ms: milliseconds(lease) };
        self.record(asked, self.bus.extend(fences, holder, lease), |still| Answer::Still(still.clone())).await
    }

    /// [`Bus::complete`].
    ///
    /// # Errors
    /// As the call.
    pub async fn complete(&self, fence: &Fence, holder: &str, completion: &Completion) -> Result<bool, Broken> {
        let asked = completing(holder, [(fence, completion)]);
        let id = fence.id;
        self.record(asked, self.bus.complete(fence, holder, completion), |recorded| still(id, *recorded)).await
    }

    /// [`Bus::complete_many`].
    ///
    /// # Errors
    /// As the call.
    pub async fn complete_many(&self, ended: &[(Fence, Completion)], holder: &str) -> Result<Vec<Uuid>, Broken> {
        let asked = completing(holder, ended.iter().map(|(fence, completion)| (fence, completion)));
        self.record(asked, self.bus.complete_many(ended, holder), |still| Answer::Still(still.clone())).await
    }

    /// [`Bus::fail`].
    ///
    /// # Errors
    /// As the call.
    pub async fn fail(&self, fence: &Fence, holder: &str, failure: &Failure) -> Result<Option<Settled>, Broken> {
        let asked = Operation::Fail { holder: holder.to_owned(), held: held(fence), retriable: failure.retriable };
        let answer = |settled: &Option<Settled>| Answer::Settled(settled.map(|settled| settled == Settled::Again));
        self.record(asked, self.bus.fail(fence, holder, failure), answer).await
    }

    /// [`Bus::fail_many`], recorded as a failure for each: all of them were made and answered at once.
    ///
    /// # Errors
    /// As the call.
    pub async fn fail_many(&self, ended: &[(Fence, Failure)], holder: &str) -> Result<Vec<(Uuid, Settled)>, Broken> {
        let asked = ended.iter().map(|(fence, failure)| {
            let retriable = failure.retriable;
            self.journal.invoked(Operation::Fail { holder: holder.to_owned(), held: held(fence), retriable })
        });
        let numbers: Vec<u64> = asked.collect();
        let told = match tokio::time::timeout(self.patience, self.bus.fail_many(ended, holder)).await {
            Ok(told) => told.map_err(Broken::from),
            Err(_) => Err(Broken::GivenUp),
        };
        for ((fence, _), number) in ended.iter().zip(numbers) {
            let outcome = match &told {
                Ok(settled) => {
                    let ours = settled.iter().find(|(id, _)| *id == fence.id);
                    Outcome::Ok(Answer::Settled(ours.map(|(_, settled)| *settled == Settled::Again)))
                }
                Err(broken) => outcome_of(broken),
            };
            self.journal.returned(number, outcome);
        }
        told
    }

    /// [`Bus::release`].
    ///
    /// # Errors
    /// As the call.
    pub async fn release(&self, fences: &[Fence], holder: &str) -> Result<u64, Broken> {
        let asked = Operation::Release { holder: holder.to_owned(), held: fences.iter().map(held).collect() };
        self.count(asked, self.bus.release(fences, holder)).await
    }

    /// [`Bus::cancel`].
    ///
    /// # Errors
    /// As the call.
    pub async fn cancel(&self, root: Uuid) -> Result<u64, Broken> {
        self.count(Operation::Cancel { root }, self.bus.cancel(root)).await
    }

    /// [`Bus::replay`].
    ///
    /// # Errors
    /// As the call.
    pub async fn replay(&self, dead_letter: Uuid) -> Result<Uuid, Broken> {
        let asked = Operation::Replay { dead_letter };
        self.record(asked, self.bus.replay(dead_letter), |fresh| Answer::Replayed(*fresh)).await
    }

    /// [`Bus::reclaim`].
    ///
    /// # Errors
    /// As the call.
    pub async fn reclaim(&self, max_rows: u32) -> Result<u64, Broken> {
        self.count(Operation::Reclaim, self.bus.reclaim(max_rows)).await
    }

    /// [`Bus::expire`].
    ///
    /// # Errors
    /// As the call.
    pub async fn expire(&self, max_rows: u32) -> Result<u64, Broken> {
        self.count(Operation::Expire, self.bus.expire(max_rows)).await
    }

    /// [`Bus::retain`].
    ///
    /// # Errors
    /// As the call.
    pub async fn retain(&self, keep: Duration, max_tasks: u32) -> Result<u64, Broken> {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.count(Operation::Retain { keep_ms }, self.bus.retain(keep, max_tasks)).await
    }

    async fn count(&self, asked: Operation, call: impl Future<Output = Result<u64, Error>>) -> Result<u64, Broken> {
        self.record(asked, call, |count| Answer::Count(*count)).await
    }
}

/// The record of an enqueue, for those that send within a transaction of their own.
#[must_use]
pub fn enqueue(messages: &[NewMessage]) -> Operation {
    let sent = messages.iter().map(|message| Sent {
        id: message.id,
        tenant: message.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()).unwrap_or_default(),
        key: message.idempotency_key.clone(),
        mark: mark(&message.payload),
    });
    Operation::Enqueue { messages: sent.collect() }
}

/// The record of what an enqueue answered.
#[must_use]
pub fn enqueued(sent: &[Enqueued]) -> Answer {
    Answer::Enqueued(sent.iter().map(|sent| Accepted { id: sent.id, duplicate: sent.duplicate }).collect())
}

/// The record of completions that a holder asks for.
pub fn completing<'a>(holder: &str, ended: impl IntoIterator<Item = (&'a Fence, &'a Completion)>) -> Operation {
    let ended = ended.into_iter().map(|(fence, completion)| Ending {
        held: held(fence),
        result: completion.result.clone(),
        follow_ups: completion.follow_ups.len(),
    });
    Operation::Complete { holder: holder.to_owned(), ended: ended.collect() }
}

/// The record of whether one completion was still its holder's.
#[must_use]
pub fn still(id: Uuid, recorded: bool) -> Answer {
    Answer::Still(if recorded { vec![id] } else { Vec::new() })
}

fn taken(claimed: &[Claimed]) -> Answer {
    let taken = claimed.iter().map(|claimed| Taken {
        held: held(&claimed.fence()),
        tenant: claimed.tenant.clone(),
        remaining_ms: claimed.remaining_ms,
        mark: mark(&claimed.payload),
    });
    Answer::Taken(taken.collect())
}

fn mark(payload: &Value) -> Option<String> {
    payload.get("mark").and_then(Value::as_str).map(str::to_owned)
}

fn held(fence: &Fence) -> Held {
    Held { id: fence.id, attempt: fence.attempt }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn outcome_of(broken: &Broken) -> Outcome {
    let Broken::Bus(error) = broken else {
        return Outcome::Unknown(broken.to_string());
    };
    match error {
        Error::Refused { reason, .. } | Error::NotFound { reason } | Error::Conflict { reason } => {
            Outcome::Failed(reason.clone())
        }
        Error::Database(cause) if was_rolled_back(cause) => Outcome::Failed(cause.to_string()),
        Error::Database(cause) => Outcome::Unknown(cause.to_string()),
        Error::Contract { .. } => Outcome::Unknown(error.to_string()),
    }
}

/// Whether nothing can have been done: it was never sent, or the server itself said that the statement failed. What it says
/// while it goes down (class 57P, 58, XX) may come after the commit.
fn was_rolled_back(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| {
            let class = code.get(..2).unwrap_or_default();
            code == "57014"
                || matches!(class, "0A" | "22" | "23" | "25" | "3D" | "40" | "42" | "53" | "54" | "55" | "P0")
        }),
        _ => false,
    }
}
