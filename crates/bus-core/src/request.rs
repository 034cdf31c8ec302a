//! Asking and waiting for the answer, within a deadline that the database's clock holds.

use std::{io, time::Duration};

use cogo_contracts::NewMessage;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::broadcast,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;
use uuid::Uuid;

use crate::{Bus, Error, Wake, WakeUps};

/// A lost hint costs at most this.
const POLL: Duration = Duration::from_millis(500);
/// Longest wait for one look; the next one goes over another connection.
const LOOK: Duration = Duration::from_secs(10);
/// What a database that says nothing costs beyond the deadline: more than a connection that died at rest, which takes 2 s to
/// be noticed.
const GRACE: Duration = Duration::from_secs(3);

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The message that was sent.
    pub id: Uuid,
    /// The result of its task.
    pub result: Option<Value>,
    /// Where a larger result stands.
    pub result_url: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The bus refused the request, or did not answer when it was sent; then the outcome is unknown.
    #[error("The request was not sent")]
    Bus(#[from] Error),
    /// It was given up.
    #[error("Request {id} failed: {error}")]
    Failed {
        /// The message that was sent.
        id: Uuid,
        /// Reason of the last failure.
        error: String,
    },
    /// It was taken back.
    #[error("Request {id} was cancelled")]
    Cancelled {
        /// The message that was sent.
        id: Uuid,
    },
    /// It was answered, and what was answered cannot be read.
    #[error("The answer to request {id} cannot be read")]
    Unreadable {
        /// The message that was sent.
        id: Uuid,
        /// What cannot be read.
        #[source]
        error: Error,
    },
    /// There was no answer within the deadline. If it was not started, it never will be; if it is being worked on, its
    /// answer will be recorded on the message.
    #[error("Request {id} was not answered in time")]
    TimedOut {
        /// The message that was sent.
        id: Uuid,
    },
}

#[derive(sqlx::FromRow)]
struct Asked {
    id: Uuid,
    root_id: Uuid,
    duplicate: bool,
}

/// What `bus.reply` answers.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Answer {
    Pending { remaining_ms: Option<u64> },
    Done { result: Option<Value>, result_url: Option<String> },
    Failed { error: Option<String> },
    Cancelled,
    TimedOut,
}

impl Bus {
    /// Sends a message and waits until its task has ended, at most until `deadline` (1 ms to 24 h) after it was sent, or 3 s
    /// longer if the database says nothing at all.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn request(
        &self,
        message: &NewMessage,
        deadline: Duration,
        wakeups: &WakeUps,
    ) -> Result<Reply, RequestError> {
        self.ask(message, deadline, wakeups, None).await
    }

    /// The same on behalf of a message that is being handled: the deadline is never later than that of `caller`, and the
    /// tenant is its tenant. The request is a task of its own, so that the caller's may wait for it.
    ///
    /// # Errors
    /// As [`RequestError`] says; [`Error::Conflict`] when the caller's time has passed.
    pub async fn request_for(
        &self,
        caller: Uuid,
        message: &NewMessage,
        deadline: Duration,
        wakeups: &WakeUps,
    ) -> Result<Reply, RequestError> {
        self.ask(message, deadline, wakeups, Some(caller)).await
    }

    async fn ask(
        &self,
        message: &NewMessage,
        deadline: Duration,
        wakeups: &WakeUps,
        caller: Option<Uuid>,
    ) -> Result<Reply, RequestError> {
        let mut hints = wakeups.subscribe();
        let asked = timeout(deadline.saturating_add(GRACE), self.send_request(message, deadline, caller)).await;
        let asked = asked.unwrap_or_else(|_elapsed| Err(silent()))?;
        let id = asked.id;
        // counted from after the send: once this has passed here, it has passed in the database
        let until = Instant::now() + deadline;
        if !asked.duplicate {
            // what was just sent is watched since before anybody could see it: a hint will come
            let _hint = timeout_at(until.min(Instant::now() + POLL), hint_about(&mut hints, asked.root_id)).await;
        }
        loop {
            let now = Instant::now();
            let is_last_look = now >= until;
            // one that gets no answer leaves time for the last
            let look_until = if is_last_look { until + GRACE } else { (now + LOOK).min(until.max(now + GRACE)) };
            let answer = timeout_at(look_until, self.reply(id)).await.unwrap_or_else(|_elapsed| Err(silent()));
            let patience = match answer {
                Ok(Answer::Done { result, result_url }) => return Ok(Reply { id, result, result_url }),
                Ok(Answer::Failed { error }) => {
                    return Err(RequestError::Failed { id, error: error.unwrap_or_default() });
                }
                Ok(Answer::Cancelled) => return Err(RequestError::Cancelled { id }),
                Ok(Answer::TimedOut) => return Err(RequestError::TimedOut { id }),
                Ok(Answer::Pending { remaining_ms }) => remaining_ms.map_or(POLL, Duration::from_millis).min(POLL),
                Err(error) if error.is_transient() => {
                    warn!(message.id = %id, %error, "could not look for a reply, trying again");
                    POLL
                }
                Err(error @ Error::Contract { .. }) => return Err(RequestError::Unreadable { id, error }),
                Err(error) => return Err(error.into()),
            };
            if is_last_look {
                return Err(RequestError::TimedOut { id });
            }
            let wait_until = until.min(Instant::now() + patience);
            let _hint = timeout_at(wait_until, hint_about(&mut hints, asked.root_id)).await;
        }
    }

    async fn send_request(
        &self,
        message: &NewMessage,
        deadline: Duration,
        caller: Option<Uuid>,
    ) -> Result<Asked, Error> {
        let mut line = self.lines.lend().await?;
        let asked = sqlx::query_as("select id, root_id, duplicate from bus.request($1, $2, $3, $4)")
            .bind(sqlx::types::Json(message))
            .bind(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX))
            .bind(format!("request#{}", Uuid::now_v7()))
            .bind(caller)
            .fetch_one(&mut *line)
            .await;
        Ok(line.back(asked)?)
    }

    async fn reply(&self, request: Uuid) -> Result<Answer, Error> {
        let mut line = self.lines.lend().await?;
        let answer = sqlx::query_scalar("select bus.reply($1)").bind(request).fetch_one(&mut *line).await;
        let answer: Option<Value> = line.back(answer).map_err(Error::reading("bus.reply"))?;
        let answer = answer.ok_or_else(|| Error::NotFound { reason: format!("Request {request} is gone") })?;
        Answer::deserialize(answer).map_err(|source| Error::Contract { what: "bus.reply", source })
    }
}

/// The error of a database that says nothing.
fn silent() -> Error {
    Error::Database(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}

async fn hint_about(hints: &mut broadcast::Receiver<Wake>, root: Uuid) {
    loop {
        match hints.recv().await {
            Ok(Wake::Task(task)) if task == root => return,
            Ok(Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            Ok(_) => {}
        }
    }
}
