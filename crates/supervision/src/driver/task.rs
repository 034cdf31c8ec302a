//! Runs a worker that is an async function.

use std::{any::Any, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::{
    Exit,
    driver::work::{Reports, TaskWork},
};

/// One run; dropped on its way, it tells that it was killed once everything of it is gone.
pub(super) fn run(
    work: &TaskWork,
    path: String,
    stop: CancellationToken,
    reports: Reports,
) -> impl Future<Output = ()> + Send + 'static {
    let work = work.clone();
    async move {
        let context = reports.context(path, stop.clone());
        // the function itself may panic as well as what it returns
        let whole = async move { work.begin(context).await };
        let exit = match AssertUnwindSafe(whole).catch_unwind().await {
            Ok(Exit::Normal) if stop.is_cancelled() => Exit::Shutdown,
            Ok(exit) => exit,
            Err(panic) => Exit::Abnormal(format!("panicked: {}", message_of(&*panic))),
        };
        reports.ended(exit);
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
