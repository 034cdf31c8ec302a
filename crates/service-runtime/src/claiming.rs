//! How many messages a worker claims, and when: one for each free hand, and for many hands together.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    Handler,
    worker::{Turn, Worker},
};

/// How long a nearly full worker lets hands become free before it claims for them together.
const GATHER: Duration = Duration::from_millis(2);
/// A worker with as many hands claims for most of them at once if it can.
const CROWD: usize = 256;
/// So many that end within [`GATHER`] are worth waiting for the others.
const QUICK: usize = 64;
/// Most messages that one claim may ask for.
const MOST: u16 = 1000;
/// A worker with fewer hands claims for each as it becomes free.
const MANY_HANDS: usize = 8;

impl<H: Handler> Worker<H> {
    /// How many messages may be claimed: one for each free hand, and fewer while as many as there are hands wait to be
    /// recorded.
    pub(crate) fn free(&self) -> u16 {
        let most = usize::from(self.attempts.brake.most(self.throttle.most(self.pace.concurrency)));
        let of_hands = most.saturating_sub(self.attempts.hands.busy());
        let of_ends = (2 * most).saturating_sub(self.attempts.leases.len());
        u16::try_from(of_hands.min(of_ends)).unwrap_or(u16::MAX).min(MOST)
    }

    /// Lets hands become free while so few are that claiming for them at once would be a statement for each message.
    pub(crate) async fn gather(&self) {
        let most = usize::from(self.throttle.most(self.pace.concurrency));
        if most >= MANY_HANDS {
            // as many as are free by then
            let _ = timeout(GATHER, self.attempts.hands.at_most(most - most / 4)).await;
        }
    }

    /// Lets most of many hands end what was just claimed, as long as they are quick about it: a large claim costs the
    /// database less than its parts.
    pub(crate) async fn gather_a_crowd(&self) {
        let most = usize::from(self.throttle.most(self.pace.concurrency));
        if most < CROWD {
            return;
        }
        let hands = &self.attempts.hands;
        loop {
            let before = hands.busy();
            let is_free = timeout(GATHER, hands.at_most(most / 4)).await.is_ok();
            if is_free || before < hands.busy() + QUICK {
                return;
            }
        }
    }

    /// What ends the sleep after a turn before its time.
    pub(crate) async fn hands_change(&self, turn: &Turn) {
        let hands = &self.attempts.hands;
        match turn {
            Turn::Full => {
                hands.at_most(usize::from(self.throttle.most(self.pace.concurrency)).saturating_sub(1)).await;
                while self.free() == 0 {
                    hands.told().await;
                }
            }
            Turn::Resting(_) => hands.told().await,
            Turn::Started | Turn::Empty | Turn::Unreachable => std::future::pending().await,
        }
    }
}
