//! Starts the attempts of a claim: each as a task of its own, or of many some in a row until one has to wait.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, poll};
use tokio::time::Instant;

use crate::{
    Handler,
    attempt::{Attempts, Taken},
};

/// The messages of a larger claim are started in rows: a task for each costs more than a quick handler.
const MANY: usize = 64;
/// Most messages of a row.
const ROW: usize = 32;
/// After this time what is left of a row gets a task each, so that other threads can take it.
const LONG: Duration = Duration::from_millis(2);

impl<H: Handler> Attempts<H> {
    /// Starts the attempts at all of these.
    pub(crate) fn start(self: &Arc<Self>, taken: Vec<Taken>) {
        let in_rows = taken.len() > MANY;
        let mut taken = taken.into_iter();
        while in_rows && taken.len() > 0 {
            let row: Vec<Taken> = taken.by_ref().take(ROW).collect();
            self.tracker.spawn(Arc::clone(self).run_row(row));
        }
        self.start_each(taken);
    }

    fn start_each(self: &Arc<Self>, taken: impl Iterator<Item = Taken>) {
        for taken in taken {
            self.tracker.spawn(Arc::clone(self).run(taken));
        }
    }

    /// Runs one attempt after the other; one that waits goes on as a task of its own.
    async fn run_row(self: Arc<Self>, taken: Vec<Taken>) {
        let begin = Instant::now();
        let mut taken = taken.into_iter();
        while let Some(next) = taken.next() {
            // what panics outside its handler, where nothing else catches it, must not take the rest of the row along
            let mut attempt = Box::pin(AssertUnwindSafe(Arc::clone(&self).run(next)).catch_unwind());
            if poll!(attempt.as_mut()).is_pending() {
                self.tracker.spawn(attempt);
            }
            if begin.elapsed() > LONG {
                self.start_each(taken.by_ref());
            }
        }
    }
}
