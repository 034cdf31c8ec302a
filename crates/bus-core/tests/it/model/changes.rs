//! What holders, chores and operators do to the bus in memory; each answers what the real one must.

use std::collections::{BTreeMap, BTreeSet};

use cogo_bus_core::Settled;
use uuid::Uuid;

use crate::model::{
    operations::Retry,
    state::{Claim, Lease, Message, Model, State, TimeToLive},
};

pub(super) const MAX_ATTEMPTS: i16 = 3;

impl Model {
    /// The message of a claim that its holder still has.
    pub(super) fn owned(&self, claim: Claim, holder: usize) -> Option<usize> {
        let message = &self.messages[claim.message];
        let State::Claimed { holder: owner, .. } = message.state else { return None };
        (owner == holder && claim.holder == holder && message.attempts == claim.attempt).then_some(claim.message)
    }

    /// The same, while the lease lasts.
    pub(super) fn leased(&self, claim: Claim, holder: usize) -> Option<usize> {
        let passed =
            |number: &usize| matches!(self.messages[*number].state, State::Claimed { lease: Lease::Passed, .. });
        self.owned(claim, holder).filter(|number| !passed(number))
    }

    pub(super) fn complete(&mut self, numbers: &[usize]) {
        self.end(numbers, State::Done);
    }

    pub(super) fn fail(&mut self, failed: &[(usize, Retry)]) -> BTreeMap<Uuid, Settled> {
        let mut settled = BTreeMap::new();
        let (mut again, mut dead) = (Vec::new(), Vec::new());
        for (number, retry) in failed {
            let message = &mut self.messages[*number];
            let in_time = match (message.time_to_live, retry) {
                (TimeToLive::Endless, _) => true,
                (TimeToLive::Ahead, retry) => !matches!(retry, Retry::InAnHour),
                (TimeToLive::Passed | TimeToLive::Swept, _) => false,
            };
            let another =
                !matches!(retry, Retry::Never) && message.attempts - message.released < MAX_ATTEMPTS && in_time;
            message.later = !matches!(retry, Retry::AtOnce);
            settled.insert(message.id, if another { Settled::Again } else { Settled::DeadLetter });
            if another { &mut again } else { &mut dead }.push(*number);
        }
        self.place(&again);
        self.end(&dead, State::Failed);
        settled
    }

    /// Without a holder: at once the first time, with backoff then.
    pub(super) fn take_back(&mut self, numbers: &[usize]) {
        for number in numbers {
            let message = &self.messages[*number];
            let first = message.attempts - message.released <= 1;
            self.fail(&[(*number, if first { Retry::AtOnce } else { Retry::WithBackoff })]);
        }
    }

    pub(super) fn release(&mut self, numbers: &[usize]) {
        for number in numbers {
            self.messages[*number].released += 1;
            self.messages[*number].later = false;
        }
        self.make_ready(numbers);
    }

    pub(super) fn defer(&mut self, numbers: &[usize], for_an_hour: bool) {
        for number in numbers {
            let message = &mut self.messages[*number];
            // a second more for each time
            message.later = for_an_hour || message.released > 0;
            message.released += 1;
        }
        self.place(numbers);
    }

    pub(super) fn extend(&mut self, numbers: &[usize]) {
        for number in numbers {
            if let State::Claimed { lease, marked, .. } = &mut self.messages[*number].state {
                (*lease, *marked) = (Lease::Extended, true);
            }
        }
    }

    pub(super) fn pass_leases(&mut self) {
        for message in &mut self.messages {
            if let State::Claimed { lease: lease @ Lease::Short, .. } = &mut message.state {
                *lease = Lease::Passed;
            }
        }
    }

    /// Answers how many became dead letters.
    pub(super) fn expire(&mut self) -> u64 {
        let passed = self.numbers(|message| message.time_to_live == TimeToLive::Passed);
        passed.iter().for_each(|number| self.messages[*number].time_to_live = TimeToLive::Swept);
        let over: Vec<usize> = passed
            .into_iter()
            .filter(|number| !self.messages[*number].ended() && !self.messages[*number].claimed())
            .collect();
        over.iter().for_each(|number| self.end(&[*number], State::Failed));
        over.len() as u64
    }

    /// The message and, should it be the first of its task, all others of that. Answers how many.
    pub(super) fn cancel(&mut self, number: usize) -> u64 {
        let mut unfinished = self.numbers(|message| message.task == number && !message.ended());
        if self.messages[number].task != number && !self.messages[number].ended() {
            unfinished.push(number);
        }
        unfinished.iter().for_each(|number| self.end(&[*number], State::Cancelled));
        unfinished.len() as u64
    }

    pub(super) fn may_be_replayed(&self, number: usize) -> bool {
        let replays = |message: &&Message| message.replay_of == Some(number);
        self.messages[number].state == State::Failed
            && !self
                .messages
                .iter()
                .filter(replays)
                .any(|message| !matches!(message.state, State::Failed | State::Cancelled))
    }

    pub(super) fn replay(&mut self, number: usize, id: Uuid, created_us: i64) {
        let dead = &self.messages[number];
        let replay = Message {
            id,
            created_us,
            replay_of: Some(number),
            awaits: BTreeSet::new(),
            later: false,
            time_to_live: TimeToLive::Endless,
            attempts: 0,
            released: 0,
            state: State::Waiting,
            ..*dead
        };
        self.messages.push(replay);
        self.enter(&[self.messages.len() - 1]);
    }
}
