//! How many messages a worker claims, and when: one for each free hand, and for many hands together. And what it tells of
//! claims that fail.

use std::time::Duration;

use cogo_bus_core::Error;
use tokio::time::{Instant, timeout};
use tracing::warn;

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
    /// How many messages may be claimed.
    pub(crate) fn free(&self) -> u16 {
        let most = usize::from(self.attempts.brake.most(self.throttle.most(self.pace.concurrency)));
        let room = room(most, self.attempts.hands.busy(), self.attempts.leases.len());
        u16::try_from(room).unwrap_or(u16::MAX).min(MOST)
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
    /// database less than its parts. With more hands than a claim has messages, the others work meanwhile.
    pub(crate) async fn gather_a_crowd(&self) {
        let most = usize::from(self.throttle.most(self.pace.concurrency));
        if most < CROWD {
            return;
        }
        let (hands, few) = (&self.attempts.hands, few(most));
        loop {
            let before = hands.busy();
            let is_free = timeout(GATHER, hands.at_most(few)).await.is_ok();
            if is_free || before < hands.busy() + QUICK {
                return;
            }
        }
    }

    /// Tells the log and the probes of a claim, begun at `begun`, that the database did not answer or refused.
    pub(crate) fn unreachable(&self, begun: Instant, what: &str, error: Error) -> Turn {
        let error = format!("{:#}", anyhow::Error::from(error));
        // whoever reaches the process may read its probes
        self.pulse.fails(begun.into_std(), &cogo_telemetry::redacted(&error));
        warn!(error, "{what}");
        Turn::Unreachable
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

/// With no more hands at work than these a claim is as large as it can be, or takes in all but the slowest hands.
fn few(hands: usize) -> usize {
    (hands / 16).max(hands.saturating_sub(usize::from(MOST)))
}

/// One message for each free hand, unless as many as there are hands wait to be recorded. Then that comes first, and a claim
/// only once it can be large: a small one would end as a small batch, and leave room for a small claim again.
fn room(hands: usize, busy: usize, held: usize) -> usize {
    let of_hands = hands.saturating_sub(busy);
    let of_ends = (2 * hands).saturating_sub(held);
    if of_ends < of_hands && of_ends < hands / 2 { 0 } else { of_hands.min(of_ends) }
}

#[cfg(test)]
mod tests {
    use super::{few, room};

    #[test]
    fn hands_beyond_a_claim_work_while_it_is_made() {
        assert_eq!(few(320), 20);
        assert_eq!(few(1000), 62);
        assert_eq!(few(2500), 1500);
    }

    #[test]
    fn each_free_hand_has_a_message_while_ends_are_recorded_as_they_come() {
        assert_eq!(room(1000, 900, 1000), 100);
        assert_eq!(room(1000, 0, 0), 1000);
        assert_eq!(room(1, 0, 1), 1);
        assert_eq!(room(1, 1, 1), 0);
    }

    #[test]
    fn small_claims_wait_for_ends_that_wait_to_be_recorded() {
        assert_eq!(room(1000, 0, 1750), 0);
        assert_eq!(room(1000, 0, 1500), 500);
        assert_eq!(room(1000, 0, 2000), 0);
        assert_eq!(room(4, 0, 7), 0);
        assert_eq!(room(4, 1, 6), 2);
    }
}
