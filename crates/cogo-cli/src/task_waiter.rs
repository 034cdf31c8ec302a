//! Waits on the bus until a task has ended.

use std::time::Duration;

use cogo_bus_core::{Bus, Wake, WakeUps};
use cogo_contracts::{Task, TaskStatus};
use tokio::{sync::broadcast, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::failure::Failure;

/// A lost hint costs at most this.
const POLL: Duration = Duration::from_millis(500);
/// Interest outlives the wait a little, so that it need not be renewed exactly on time.
const INTEREST: Duration = Duration::from_secs(60);

/// The task once nothing of it will change any more.
pub(crate) async fn wait_for_end(bus: &Bus, root: Uuid, patience: Duration) -> Result<Task, Failure> {
    let deadline = Instant::now() + patience;
    let stop = CancellationToken::new();
    let _stop_at_end = stop.clone().drop_guard();
    let wakeups = WakeUps::default();
    let mut hints = wakeups.subscribe();
    let mut background = JoinSet::new();
    background.spawn(wakeups.run(bus.pool().clone(), stop));
    let watcher = format!("cogo-cli#{}", std::process::id());
    loop {
        // interest first, then the look: a change in between is announced
        bus.watch(root, &watcher, INTEREST).await?;
        let task = bus.task(root).await?.ok_or_else(|| Failure::not_found(format!("There is no task {root}")))?;
        if task.status.is_terminal() {
            return Ok(task);
        }
        let until = deadline.min(Instant::now() + POLL);
        let _hint = tokio::time::timeout_at(until, hint_about(&mut hints, root)).await;
        if Instant::now() >= deadline {
            return Err(still_running(root, patience));
        }
    }
}

pub(crate) fn still_running(root: Uuid, patience: Duration) -> Failure {
    Failure::timeout(format!("Task {root} has not ended within {} s", patience.as_secs()))
        .hint(format!("it goes on; `cogo trace {root}` shows where it is"))
}

/// The task as it ended, or why that is not good.
pub(crate) fn require_done(task: Task) -> Result<Task, Failure> {
    let cause = task.error.clone().unwrap_or_default();
    let hint = format!("`cogo trace {}` shows the steps", task.id);
    match task.status {
        TaskStatus::Failed => Err(Failure::failed(format!("Task {} failed", task.id)).cause(cause).hint(hint)),
        TaskStatus::Cancelled => Err(Failure::failed(format!("Task {} was taken back", task.id)).hint(hint)),
        _ => Ok(task),
    }
}

async fn hint_about(hints: &mut broadcast::Receiver<Wake>, root: Uuid) {
    loop {
        match hints.recv().await {
            Ok(Wake::Task(task)) if task == root => return,
            Ok(Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            Ok(_) => {}
        }
    }
}
