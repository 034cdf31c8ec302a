//! Ends of attempts that are recorded one by one: completions that send or write something, what is handed back, and what
//! was refused among others.

use std::{panic::AssertUnwindSafe, time::Duration};

use cogo_bus_core::{Bus, Error as BusError, Failure};
use cogo_telemetry::Outcome;
use futures_util::FutureExt;
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    Claim, Handler,
    attempt::{Attempts, End, panic_text},
    gathered::outcome,
    handler::Effect,
    patience::{in_time, silent},
    retry::{Deferral, Fault},
};

/// First and longest pause before the end of an attempt is written again.
pub(crate) const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long the end of an attempt may still be written after the hard stop.
pub(crate) const LAST_WRITE: Duration = Duration::from_secs(2);
/// A write may wait for a connection as well, and effects are statements of their own.
const WRITES_IN_A_ROW: u32 = 3;
const WRITES_WITH_EFFECTS: u32 = 10;

/// Why an end is not written.
#[derive(Debug)]
enum Unwritten {
    /// The bus or its database says so.
    Refused(BusError),
    /// An effect panicked with this text, and nothing of the end stands.
    Panicked(String),
}

impl<E: Into<BusError>> From<E> for Unwritten {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

impl<H: Handler> Attempts<H> {
    /// Writes the end, again and again while the database is away and the message may still be ours.
    pub(crate) async fn record(&self, claim: &Claim, end: End, started: Instant) {
        let (id, fence) = (claim.id(), claim.claimed().fence());
        let mut pause = WRITE_AGAIN.0;
        let mut refusals = 0;
        let mut end = end;
        let outcome = loop {
            let (reason, retriable) = match self.write_in_time(claim, &end).await {
                Ok(outcome) => break outcome,
                Err(Unwritten::Panicked(text)) => {
                    // as if the handler had, and not again: the same effect would panic once more
                    let failure = self.retry.judge(&self.bus, self.patience, claim, Fault::panic(&text)).await;
                    end = End::Failed(failure);
                    refusals = 0;
                    continue;
                }
                Err(Unwritten::Refused(refused)) => {
                    refusals += u8::from(!refused.is_passing());
                    let is_final = refused.is_final();
                    match refused {
                        BusError::Database(error) if refusals < BusError::REFUSALS => {
                            warn!(%error, "end of the attempt not written yet");
                            if !self.still_ours_after(pause, claim).await {
                                warn!("end of the attempt not written, and not ours to write any more");
                                break Outcome::LeaseLost;
                            }
                            pause = (pause * 2).min(WRITE_AGAIN.1);
                            continue;
                        }
                        BusError::Database(error) => (format!("the database refuses the completion: {error}"), true),
                        // a result that is against the contract is the handler's failure, and final; an effect that meets
                        // a route that is being drained is not
                        refused => (format!("{refused:#}"), !is_final),
                    }
                }
            };
            warn!(error = reason, "completion refused");
            if matches!(end, End::Failed(_)) {
                break Outcome::LeaseLost;
            }
            refusals = 0;
            end = End::Failed(Failure { reason, retriable, retry_after: None });
        };
        self.forget([&fence]);
        match &end {
            End::Failed(failure) => warn!(outcome = outcome.as_str(), error = failure.reason, "message {id} failed"),
            // the row tells it too: a line for each would cost as much as a small handler
            End::Done(..) => {
                self.brake.worked();
                debug!(outcome = outcome.as_str(), "message {id} handled");
            }
            End::Deferred(Deferral { wait, reason }) => {
                info!(outcome = outcome.as_str(), wait_ms = wait.as_millis(), reason, "message {id} put off");
            }
            End::Released | End::Lost => info!(outcome = outcome.as_str(), "message {id} dropped"),
        }
        self.metrics.processed(outcome, started.elapsed());
    }

    /// Waits; false when the lease, the time to live, the claim or the process ended meanwhile.
    async fn still_ours_after(&self, pause: Duration, claim: &Claim) -> bool {
        let until = Instant::now() + pause;
        let Some(owned) = self.leases.owned_until(&claim.claimed().fence()) else { return false };
        let last = claim.deadline().map_or(owned, |deadline| deadline.min(owned));
        tokio::select! {
            biased;
            () = self.hard_stop.cancelled() => false,
            () = claim.token().cancelled() => false,
            () = tokio::time::sleep_until(until.min(last)) => until < last,
        }
    }

    /// A write that neither a silent database nor the end of the process can hold up.
    async fn write_in_time(&self, claim: &Claim, end: &End) -> Result<Outcome, Unwritten> {
        let writes = match end {
            End::Done(_, effects) if !effects.is_empty() => WRITES_WITH_EFFECTS,
            _ => WRITES_IN_A_ROW,
        };
        tokio::select! {
            written = in_time(self.patience * writes, self.write(claim, end)) => written,
            () = self.last_chance() => Err(silent().into()),
        }
    }

    async fn write(&self, claim: &Claim, end: &End) -> Result<Outcome, Unwritten> {
        let fence = claim.claimed().fence();
        let holder = claim.holder();
        let started = Instant::now();
        let outcome = match end {
            End::Done(completion, effects) if effects.is_empty() => {
                self.bus.complete(&fence, holder, completion).await?.then_some(Outcome::Done)
            }
            End::Done(completion, effects) => {
                let mut transaction = self.bus.pool().begin().await?;
                let ours = Bus::complete_in(&mut transaction, &fence, holder, completion).await?;
                if ours {
                    for effect in effects {
                        caught(effect, &mut transaction).await?;
                    }
                    transaction.commit().await?;
                }
                ours.then_some(Outcome::Done)
            }
            End::Failed(failure) => self.bus.fail(&fence, holder, failure).await?.map(outcome),
            End::Deferred(Deferral { wait, reason }) => {
                (self.bus.defer(&[fence], holder, *wait, reason).await? == 1).then_some(Outcome::Released)
            }
            End::Released => (self.bus.release(&[fence], holder).await? == 1).then_some(Outcome::Released),
            End::Lost => None,
        };
        self.metrics.settled(started.elapsed());
        Ok(outcome.unwrap_or(Outcome::LeaseLost))
    }
}

/// The transaction of an effect that panics is rolled back as it is dropped.
async fn caught(effect: &Effect, connection: &mut PgConnection) -> Result<(), Unwritten> {
    // the call itself may panic as well
    let called = AssertUnwindSafe(async { effect(connection).await }).catch_unwind().await;
    called.map_err(|panic| Unwritten::Panicked(panic_text(&*panic).to_owned()))?.map_err(Unwritten::from)
}
