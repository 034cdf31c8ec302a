//! Ends of one kind that one statement records: completions that send nothing, or failures.

use std::collections::HashMap;

use cogo_bus_core::{Bus, Completion, Error, Failure, Fence, Settled};
use cogo_telemetry::Outcome;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Claim, attempt::End};

/// What one statement records, and whose it is.
pub(crate) struct Batch<E> {
    pub(crate) ends: Vec<(Fence, E)>,
    /// In the same order, with the moment since when it was worked on.
    pub(crate) claims: Vec<(Claim, Instant)>,
}

impl<E> Batch<E> {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn push(&mut self, claim: Claim, end: E, started: Instant) {
        self.ends.push((claim.claimed().fence(), end));
        self.claims.push((claim, started));
    }

    pub(crate) fn into_halves(mut self) -> [Self; 2] {
        let half = self.len() / 2;
        let rest = Self { ends: self.ends.split_off(half), claims: self.claims.split_off(half) };
        [self, rest]
    }

    /// Those of which this is true, and the others.
    pub(crate) fn partition(self, is_first: impl Fn(&Claim) -> bool) -> (Self, Self) {
        let mut parts = (Self::default(), Self::default());
        for ((fence, end), (claim, started)) in self.ends.into_iter().zip(self.claims) {
            let part = if is_first(&claim) { &mut parts.0 } else { &mut parts.1 };
            part.ends.push((fence, end));
            part.claims.push((claim, started));
        }
        parts
    }
}

impl<E> Default for Batch<E> {
    fn default() -> Self {
        Self { ends: Vec::new(), claims: Vec::new() }
    }
}

/// What became of the ends of a batch; one that was not recorded had another holder by then.
pub(crate) enum Recorded {
    /// All, and in the same way.
    All(Outcome),
    /// These.
    Some(HashMap<Uuid, Outcome>),
}

impl Recorded {
    pub(crate) fn nothing() -> Self {
        Self::Some(HashMap::new())
    }

    pub(crate) fn of(&self, id: Uuid) -> Outcome {
        match self {
            Self::All(outcome) => *outcome,
            Self::Some(outcomes) => outcomes.get(&id).copied().unwrap_or(Outcome::LeaseLost),
        }
    }
}

/// An end that may be recorded together with others of its kind.
pub(crate) trait Gathered: Sized + Send + Sync + 'static {
    /// Whether it shows that messages can be worked on.
    const IS_SUCCESS: bool;

    /// The same, to be recorded alone.
    fn into_end(self) -> End;

    /// Why the attempt failed, if it did.
    fn reason(&self) -> Option<&str>;

    /// Writes all or none.
    fn write(bus: &Bus, ends: &[(Fence, Self)], holder: &str) -> impl Future<Output = Result<Recorded, Error>> + Send;
}

impl Gathered for Completion {
    const IS_SUCCESS: bool = true;

    fn into_end(self) -> End {
        End::Done(self, Vec::new())
    }

    fn reason(&self) -> Option<&str> {
        None
    }

    async fn write(bus: &Bus, ends: &[(Fence, Self)], holder: &str) -> Result<Recorded, Error> {
        let recorded = bus.complete_many(ends, holder).await?;
        if recorded.len() == ends.len() {
            return Ok(Recorded::All(Outcome::Done));
        }
        Ok(Recorded::Some(recorded.into_iter().map(|id| (id, Outcome::Done)).collect()))
    }
}

impl Gathered for Failure {
    const IS_SUCCESS: bool = false;

    fn into_end(self) -> End {
        End::Failed(self)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    async fn write(bus: &Bus, ends: &[(Fence, Self)], holder: &str) -> Result<Recorded, Error> {
        let recorded = bus.fail_many(ends, holder).await?;
        Ok(Recorded::Some(recorded.into_iter().map(|(id, settled)| (id, outcome(settled))).collect()))
    }
}

/// What a failure that was recorded led to.
pub(crate) fn outcome(settled: Settled) -> Outcome {
    match settled {
        Settled::Again => Outcome::Retry,
        Settled::DeadLetter => Outcome::DeadLetter,
    }
}
