//! What a worker is: an async function or a process.

use std::{fmt, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Exit, ProcessWork,
    core::{Input, RunId},
};

/// What a worker is; each start makes a new one of it.
#[derive(Debug, Clone)]
pub enum Work {
    /// A tokio task.
    Task(TaskWork),
    /// A process of the operating system.
    Process(Arc<ProcessWork>),
}

impl Work {
    /// An async function that counts as started at once. It shall end when `TaskContext::stop` is cancelled.
    ///
    /// What it returns is its end: `()`, a `Result<(), E>` whose error can be printed, or an [`Exit`]. A panic is an
    /// abnormal end. Killing drops it where it waits; one that computes without ever awaiting cannot be killed.
    pub fn task<F, Fut>(function: F) -> Self
    where
        F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: Into<Exit>,
    {
        Self::Task(TaskWork::new(function, false))
    }

    /// As `task`, but it counts as started only once it has called `TaskContext::ready`.
    pub fn task_that_says_when_ready<F, Fut>(function: F) -> Self
    where
        F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: Into<Exit>,
    {
        Self::Task(TaskWork::new(function, true))
    }

    /// A process.
    #[must_use]
    pub fn process(process: ProcessWork) -> Self {
        Self::Process(Arc::new(process))
    }
}

/// An async function that can be started many times.
#[derive(Clone)]
pub struct TaskWork {
    function: Arc<dyn Fn(TaskContext) -> BoxFuture<'static, Exit> + Send + Sync>,
    pub(super) says_when_ready: bool,
}

impl TaskWork {
    fn new<F, Fut>(function: F, says_when_ready: bool) -> Self
    where
        F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: Into<Exit>,
    {
        Self { function: Arc::new(move |context| function(context).map(Into::into).boxed()), says_when_ready }
    }

    pub(super) fn begin(&self, context: TaskContext) -> BoxFuture<'static, Exit> {
        (self.function)(context)
    }
}

impl fmt::Debug for TaskWork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TaskWork").field("says_when_ready", &self.says_when_ready).finish_non_exhaustive()
    }
}

/// What a task knows of its supervisor.
#[derive(Debug, Clone)]
pub struct TaskContext {
    pub(super) path: String,
    pub(super) stop: CancellationToken,
    pub(super) run: RunId,
    pub(super) reports: mpsc::UnboundedSender<Input<Work>>,
}

impl TaskContext {
    /// The path of this child in its tree.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Cancelled when the task shall end.
    #[must_use]
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Says that the task is ready; needed only if it was declared so.
    pub fn ready(&self) {
        // a tree that is over does not care
        let _ = self.reports.send(Input::Started { run: self.run });
    }
}

/// Tells the core of one run. Whatever becomes of the task that holds it, the end of the run is told.
#[derive(Debug)]
pub(super) struct Reports {
    run: RunId,
    sender: mpsc::UnboundedSender<Input<Work>>,
    has_ended: bool,
}

impl Reports {
    pub(super) const fn new(run: RunId, sender: mpsc::UnboundedSender<Input<Work>>) -> Self {
        Self { run, sender, has_ended: false }
    }

    pub(super) fn context(&self, path: String, stop: CancellationToken) -> TaskContext {
        TaskContext { path, stop, run: self.run, reports: self.sender.clone() }
    }

    pub(super) fn spawned(&self, pid: u32) {
        let _ = self.sender.send(Input::Spawned { run: self.run, pid });
    }

    pub(super) fn started(&self) {
        let _ = self.sender.send(Input::Started { run: self.run });
    }

    pub(super) fn ended(mut self, exit: Exit) {
        self.tell_end(exit);
    }

    fn tell_end(&mut self, exit: Exit) {
        if !std::mem::replace(&mut self.has_ended, true) {
            let _ = self.sender.send(Input::Exited { run: self.run, exit });
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.tell_end(Exit::Killed);
    }
}
