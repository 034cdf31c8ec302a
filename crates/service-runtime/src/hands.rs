//! Counts the hands of a worker that are busy, and tells its loop when enough of them are free.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The hands of a worker. A hand is busy from the claim of a message until its handler has ended; where the end is
/// written with others', that goes on without it.
#[derive(Debug, Default)]
pub(crate) struct Hands {
    busy: AtomicUsize,
    /// With no more busy than these the loop wants to be told.
    few: AtomicUsize,
    changed: Notify,
}

impl Hands {
    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// So many messages get a hand each.
    pub(crate) fn take(&self, count: usize) {
        self.busy.fetch_add(count, Ordering::AcqRel);
    }

    /// One of those that were taken, for as long as this lives.
    pub(crate) fn hold(&self) -> Hand<'_> {
        Hand(self)
    }

    /// Wakes the loop, as when messages have ended for good.
    pub(crate) fn tell(&self) {
        self.changed.notify_one();
    }

    /// Waits until it was told.
    pub(crate) async fn told(&self) {
        self.changed.notified().await;
    }

    /// Waits until no more than so many are busy.
    pub(crate) async fn at_most(&self, few: usize) {
        // those that end from now on tell; what ended before is seen by the look
        self.few.store(few, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) > few {
            self.changed.notified().await;
        }
    }
}

/// A busy hand.
#[derive(Debug)]
pub(crate) struct Hand<'a>(&'a Hands);

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let left = self.0.busy.fetch_sub(1, Ordering::SeqCst) - 1;
        if left <= self.0.few.load(Ordering::SeqCst) {
            self.0.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn loop_is_woken_by_the_hand_that_it_waits_for() {
        let hands = Hands::default();
        hands.take(3);
        let held = [hands.hold(), hands.hold(), hands.hold()];
        let mut waiting = Box::pin(hands.at_most(1));
        assert!((&mut waiting).now_or_never().is_none());
        let [first, second, third] = held;
        drop(first);
        assert!((&mut waiting).now_or_never().is_none(), "two are busy");
        drop(second);
        assert!((&mut waiting).now_or_never().is_some());
        assert_eq!(hands.busy(), 1);
        drop(third);
        assert!(hands.at_most(0).now_or_never().is_some());
    }
}
