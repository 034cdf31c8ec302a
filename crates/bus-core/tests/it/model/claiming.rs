//! A claim on the bus in memory: which sets of messages the real one may have taken.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, test_runner::TestCaseError};

use crate::model::{
    operations::FLOOD,
    state::{Claim, Lease, Model, State, TimeToLive},
};

/// Claims of more leave the rows of their messages as they are.
const MARKED_AT_ONCE: usize = 64;

// a flood is to make such claims
const _: () = assert!(FLOOD > MARKED_AT_ONCE);

/// What a real claim took.
pub(super) struct Taken {
    pub holder: usize,
    /// At most as many were wanted.
    pub count: usize,
    /// Handed out, each with its attempt.
    pub given: BTreeMap<usize, i16>,
    /// Found to have outlived their time: they were not handed out and are dead letters.
    pub dropped: BTreeSet<usize>,
}

impl Model {
    /// What a claim does before it takes anything. Answers whether times to live were found to be over: what their ends set
    /// free in that very moment may be left to the next claim.
    pub(super) fn prepare_claim(&mut self) -> bool {
        if self.paused {
            return false;
        }
        let expiring = self.messages.iter().any(|message| message.time_to_live == TimeToLive::Passed);
        self.expire();
        let due = self.numbers(|message| message.state == State::Delayed && !message.later);
        self.place(&due);
        expiring
    }

    /// Those that may be claimed, in the order in which each tenant's are.
    fn ready(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut ready: Vec<(i64, u64, i64, usize)> = Vec::new();
        for (number, message) in self.messages.iter().enumerate() {
            if let State::Ready { due, chunk } = message.state {
                ready.push((due, chunk, message.created_us, number));
            }
        }
        ready.sort_unstable();
        let mut of_tenants: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (.., number) in ready {
            of_tenants.entry(self.messages[number].tenant).or_default().push(number);
        }
        of_tenants
    }

    /// Ready ones that must not be started any more.
    pub(super) fn doomed(&self) -> Vec<usize> {
        self.numbers(|message| matches!(message.state, State::Ready { .. }) && message.outlived())
    }

    pub(super) fn take(&mut self, taken: &Taken, hasty: bool) -> Result<(), TestCaseError> {
        let all: BTreeSet<usize> = taken.given.keys().copied().chain(taken.dropped.iter().copied()).collect();
        if self.paused {
            prop_assert_eq!(all, BTreeSet::new(), "claimed of a paused route");
            return Ok(());
        }
        let ready = self.ready();
        let running = self.messages.iter().filter(|message| message.claimed()).count();
        let room = self.limit.map_or(usize::MAX, |limit| (limit as usize).saturating_sub(running)).min(taken.count);
        let most = room.min(ready.values().map(Vec::len).sum());
        prop_assert!(all.len() == most || hasty && all.len() < most, "took {all:?}, {most} of {ready:?} were free");
        for (tenant, its_ready) in &ready {
            let its_taken: BTreeSet<usize> =
                all.iter().copied().filter(|number| self.messages[*number].tenant == *tenant).collect();
            let first: BTreeSet<usize> = its_ready.iter().copied().take(its_taken.len()).collect();
            prop_assert_eq!(&its_taken, &first, "tenant {}'s are taken in their order {:?}", tenant, its_ready);
            let share = its_ready.len().min(taken.count / ready.len());
            prop_assert!(
                hasty || self.limit.is_some() || its_taken.len() >= share,
                "tenant {tenant}'s share is {share}"
            );
        }
        for (number, attempt) in &taken.given {
            let message = &mut self.messages[*number];
            prop_assert!(!message.outlived(), "{number} was started after its time to live");
            message.attempts += 1;
            prop_assert_eq!(message.attempts, *attempt, "attempt of {}", number);
            message.state =
                State::Claimed { holder: taken.holder, lease: Lease::Short, marked: all.len() <= MARKED_AT_ONCE };
            self.claims.push(Claim { message: *number, attempt: *attempt, holder: taken.holder });
        }
        for number in &taken.dropped {
            prop_assert!(self.messages[*number].outlived(), "{number} failed without a reason");
            self.end(&[*number], State::Failed);
        }
        Ok(())
    }
}
