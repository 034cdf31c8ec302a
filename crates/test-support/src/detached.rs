//! Runs a future to its end from code that cannot wait, such as `Drop`.

use std::{future::Future, thread};

/// Runs the future on a runtime of its own and waits for it; the caller may be inside another runtime.
pub(crate) fn run_to_end<F>(future: F)
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    thread::scope(|scope| {
        scope.spawn(|| {
            let outcome = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(future));
            if let Err(error) = outcome {
                report(&error);
            }
        });
    });
}

#[expect(clippy::print_stderr, reason = "tests have no other log, and a test that passed must not fail by cleaning up")]
fn report(error: &anyhow::Error) {
    eprintln!("could not clean up after a test: {error:#}");
}
