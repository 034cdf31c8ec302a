//! The point at which a client is killed or stopped: it does so itself, so that no step is missed.

use std::{future::Future, time::Duration};

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::chance::Chance;

/// A step of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// While an enqueue is under way.
    Enqueueing,
    /// After an enqueue was acknowledged.
    Enqueued,
    /// Within an explicit transaction, before its commit.
    InTransaction,
    /// While a claim is under way.
    Claiming,
    /// With messages in hand.
    Claimed,
    /// Amid the work on a batch.
    Working,
    /// While an extension is under way.
    Extending,
    /// While a completion is under way.
    Completing,
    /// After a completion was acknowledged.
    Completed,
    /// While a failure is under way.
    Failing,
    /// While a hand-back is under way.
    Releasing,
    /// While leases are reclaimed.
    Reclaiming,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// `kill -9`.
    Kill,
    /// `SIGSTOP`, until somebody continues it.
    Stop,
}

/// A fault of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where.
    pub point: Point,
    /// The how-manieth time that it gets there, from 1.
    pub nth: u32,
    /// What.
    pub how: How,
}

/// Longest time that a call is under way when the fault strikes; a call takes about as long.
const LONGEST_US: u64 = 2_000;

/// The fault of this process, if it has one.
pub(super) struct Armed {
    fault: Option<Fault>,
    reached: u32,
}

impl Armed {
    pub(super) fn new(fault: Option<Fault>) -> Self {
        Self { fault, reached: 0 }
    }

    fn strikes(&mut self, point: Point) -> Option<How> {
        let fault = self.fault.filter(|fault| fault.point == point)?;
        self.reached += 1;
        (self.reached == fault.nth).then_some(fault.how)
    }

    /// Strikes here if this is the point.
    pub(super) fn at(&mut self, point: Point) {
        if let Some(how) = self.strikes(point) {
            strike(how);
        }
    }

    /// Strikes at a moment of the call that chance decides, if this is the point.
    pub(super) async fn during<T>(&mut self, point: Point, chance: &mut Chance, call: impl Future<Output = T>) -> T {
        let Some(how) = self.strikes(point) else { return call.await };
        let moment = Duration::from_micros(chance.below(LONGEST_US));
        tokio::pin!(call);
        tokio::select! {
            biased;
            () = tokio::time::sleep(moment) => strike(how),
            told = &mut call => {
                strike(how);
                return told;
            }
        }
        call.await
    }
}

/// Does not return from a kill.
fn strike(how: How) {
    let signal = match how {
        How::Kill => Signal::KILL,
        How::Stop => Signal::STOP,
    };
    kill_process(getpid(), signal).expect("a process may signal itself");
}
