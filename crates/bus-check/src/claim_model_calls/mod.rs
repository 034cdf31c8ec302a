//! Ends, extensions and reclaims as the transactions that they are: every statement, every lock of a row and every commit is
//! a step of its own, as in READ COMMITTED, and a call may break off between any two of them.
//!
//! A statement sees what was committed when it began, and its own transaction's writes. Who changes or locks the row of a
//! message waits for whoever has it, and then judges the newest version of it. Rows of claims are passed over when somebody
//! has them; only where limits count them does an end wait. The holder is always the same one, since claims of others are
//! other rows; a message that is taken back is given out again, perhaps while the first attempt still runs. A call is sent
//! any number of times, at any time after the claim that it belongs to.

mod begin;
mod end;
mod extend;
mod reclaim;
mod world;

use crate::explore::Model;

pub use world::CallWorld;
use world::{At, Call, Kind, Status};

/// How large a world is visited.
#[derive(Debug, Clone, Copy)]
pub struct CallModel {
    /// Messages, all ready at the start.
    pub messages: u8,
    /// Attempts that a message has.
    pub max_attempts: u8,
    /// Ticks of the clock that a claim lasts.
    pub lease: u8,
    /// Transactions at once.
    pub calls: usize,
    /// Whether failures arrive as well as completions.
    pub failures: bool,
    /// Whether limits count the claims, so that an end waits for the row of its claim.
    pub limited: bool,
    /// Whether an end is two transactions: first the rows of the messages, then the row of the claim.
    pub end_in_two: bool,
    /// Whether an end reads once more which claims its messages are in before it counts them off, as one of several claims
    /// does.
    pub reads_claims_again: bool,
    /// What is wrong with it.
    pub defect: CallDefect,
}

/// Mistakes that an implementation could make; the exploration must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallDefect {
    /// None.
    None,
    /// An end that waited for the row of a message does not look at it again.
    EndTrustsItsSnapshot,
    /// An end counts off what it was asked to end, not what it ended.
    EndCountsWhatWasAsked,
    /// An end counts off the claim that it read, although that was split meanwhile.
    EndIgnoresTheVersion,
    /// An end that looks for its messages in other claims does not compare the attempt.
    EndIgnoresTheAttempt,
    /// An end that reads its claims once more takes a message that is in two of them for two.
    EndCountsEveryClaimItReads,
    /// A split claim keeps its version.
    SplitKeepsTheVersion,
    /// An extension splits the claim as it first read it, not as it is once it is locked.
    SplitDoesNotReadAgain,
    /// An extension takes for ended what somebody is just ending.
    SplitForgetsWhatIsLocked,
    /// An extension promises a lease although somebody had the claim locked.
    ExtensionLeavesLockedClaims,
    /// Reclaiming does not heed that an extension gave a message a later lease elsewhere.
    ReclaimIgnoresLaterLeases,
    /// Reclaiming does not look whether another lease was written before it got the row of the message.
    ReclaimTrustsItsSnapshot,
    /// Reclaiming removes a claim although a message of it was locked and passed over.
    ReclaimForgetsWhatIsLocked,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallStep {
    /// A worker takes all that is ready.
    Claim,
    /// A completion of these (message, attempt) begins.
    Complete(Vec<(u8, u8)>),
    /// A retriable failure begins.
    Fail(Vec<(u8, u8)>),
    /// An extension begins.
    Extend(Vec<(u8, u8)>),
    /// Somebody begins to take back this claim.
    Reclaim(u8),
    /// The next step of a transaction.
    Next(usize, String),
    /// A transaction breaks off: nothing of it was ever there.
    BreakOff(usize),
    /// Time passes.
    Tick,
}

impl Model for CallModel {
    type State = CallWorld;
    type Action = CallStep;

    fn start(&self) -> CallWorld {
        CallWorld::new(self.messages)
    }

    fn actions(&self, world: &CallWorld) -> Vec<CallStep> {
        let mut steps = Vec::new();
        if world.has_leases() {
            steps.push(CallStep::Tick);
        }
        if !world.ready.is_empty() {
            steps.push(CallStep::Claim);
        }
        for (number, call) in world.calls.iter().enumerate() {
            if !self.must_wait(world, call) {
                steps.push(CallStep::Next(number, format!("{:?} {:?}", call.kind, call.at)));
            }
            steps.push(CallStep::BreakOff(number));
        }
        if world.calls.len() < self.calls {
            for asked in world.choices() {
                if self.failures && asked.len() == 1 {
                    steps.push(CallStep::Fail(asked.clone()));
                }
                steps.push(CallStep::Extend(asked.clone()));
                steps.push(CallStep::Complete(asked));
            }
            let over = world.claims.iter().filter(|claim| claim.lease == 0 && !world.is_claim_locked(claim.id, None));
            steps.extend(over.map(|claim| CallStep::Reclaim(claim.id)));
        }
        steps
    }

    fn next(&self, world: &CallWorld, step: &CallStep) -> CallWorld {
        let mut next = world.clone();
        match step {
            CallStep::Claim => next.claim(self.lease),
            CallStep::Complete(asked) => self.begin_end(&mut next, Kind::Complete, asked),
            CallStep::Fail(asked) => self.begin_end(&mut next, Kind::Fail, asked),
            CallStep::Extend(asked) => self.begin_extension(&mut next, asked),
            CallStep::Reclaim(claim) => next.begin_reclaim(*claim),
            CallStep::Next(number, _) => self.advance(&mut next, *number),
            CallStep::BreakOff(number) => {
                next.calls.remove(*number);
            }
            CallStep::Tick => next.tick(),
        }
        next.sort();
        next
    }

    fn broken(&self, world: &CallWorld) -> Option<&'static str> {
        world.broken()
    }

    fn has_ended(&self, world: &CallWorld) -> bool {
        world.rows.iter().all(|row| row.status != Status::Open) && world.calls.is_empty() && world.claims.is_empty()
    }

    fn is_reliable(&self, _world: &CallWorld, step: &CallStep) -> bool {
        // workers may be gone; somebody claims and reclaims all the same
        matches!(step, CallStep::Tick | CallStep::Claim | CallStep::Next(..) | CallStep::Reclaim(_))
    }
}

impl CallModel {
    /// Whether the next step of a call waits for another call.
    fn must_wait(&self, world: &CallWorld, call: &Call) -> bool {
        match call.at {
            At::LockRow(next) => world.is_row_locked(call.given[next].entry.0, call),
            At::LetGo => self.limited && world.is_claim_locked(end::first_claim(call).0, Some(call)),
            _ => false,
        }
    }

    /// One step of a transaction.
    fn advance(&self, world: &mut CallWorld, number: usize) {
        let mut call = world.calls.remove(number);
        match call.at {
            At::LockRow(next) => self.lock_row(world, &mut call, next),
            At::CommitRows => world.commit_rows(&mut call, self.max_attempts),
            At::ReadClaims => end::read_claims(world, &mut call, self.defect),
            At::LetGo => self.let_go(world, &mut call),
            At::LookElsewhere => self.look_elsewhere(world, &mut call),
            At::LockClaims(look) => self.lock_claims(world, &mut call, look),
            At::Split(look, next) => self.split(world, &mut call, look, next),
            At::LeaseOfItsOwn => self.lease_of_its_own(world, &mut call),
            At::Scan => self.scan(world, &mut call),
            At::TakeRows => self.take_rows(world, &mut call),
            At::LeftOver => self.left_over(world, &mut call),
            At::Commit => {
                world.commit(call, self.max_attempts);
                return;
            }
        }
        world.calls.push(call);
    }
}
