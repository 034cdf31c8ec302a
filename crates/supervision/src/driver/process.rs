//! Runs a worker that is a process of the operating system.

use std::{fmt, io, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::{Exit, driver::work::Reports};

/// A process that was just started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawned {
    /// The path of the child in its tree.
    pub path: String,
    /// The number of the process, which leads a process group of its own.
    pub pid: u32,
}

type MakeCommand = dyn Fn() -> io::Result<Command> + Send + Sync;
type MakeReady = dyn Fn(Spawned) -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// How to start a process, and how to know that it is ready.
///
/// It is stopped by SIGTERM and killed by SIGKILL; both go to its whole process group. Whatever of the group outlives
/// the process is killed, so that a restart never runs beside remains of the run before.
pub struct ProcessWork {
    command: Box<MakeCommand>,
    ready: Option<Box<MakeReady>>,
    /// Exit codes after which a new start would not help, with what they mean.
    final_codes: Vec<(i32, String)>,
}

impl ProcessWork {
    /// A process from a command that is made anew for each start; it counts as started once it runs.
    pub fn new(command: impl Fn() -> io::Result<Command> + Send + Sync + 'static) -> Self {
        Self { command: Box::new(command), ready: None, final_codes: Vec::new() }
    }

    /// Counts it as started only when this future says so; an error kills the process and is why it did not start.
    /// Limit it with `ChildSpec::start_timeout`.
    #[must_use]
    pub fn ready<F, Fut, E>(mut self, ready: F) -> Self
    where
        F: Fn(Spawned) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.ready = Some(Box::new(move |spawned| {
            ready(spawned).map(|result| result.map_err(|error| format!("{error:#}"))).boxed()
        }));
        self
    }

    /// An exit code by which the process says that a new start would not help, and what it means: [`Exit::Final`].
    #[must_use]
    pub fn final_code(mut self, code: u8, meaning: impl Into<String>) -> Self {
        self.final_codes.push((i32::from(code), meaning.into()));
        self
    }
}

impl fmt::Debug for ProcessWork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ProcessWork").field("has_ready", &self.ready.is_some()).finish_non_exhaustive()
    }
}

/// One run.
pub(super) async fn run(
    work: Arc<ProcessWork>,
    path: String,
    stop: CancellationToken,
    kill: CancellationToken,
    reports: Reports,
) {
    let exit = match start(&work) {
        Ok((child, pid)) => {
            reports.spawned(pid);
            let ready = match &work.ready {
                Some(ready) => ready(Spawned { path, pid }),
                None => async { Ok(()) }.boxed(),
            };
            let ended = mind(child, pid, ready, &stop, &kill, &reports).await;
            ended.into_exit(&work.final_codes)
        }
        Err(error) => Exit::Abnormal(format!("no process: {error}")),
    };
    reports.ended(exit);
}

fn start(work: &ProcessWork) -> io::Result<(Child, u32)> {
    let child = (work.command)()?.process_group(0).kill_on_drop(true).spawn()?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended before it could be asked for its number"))?;
    Ok((child, pid))
}

async fn mind(
    mut child: Child,
    pid: u32,
    mut ready: BoxFuture<'static, Result<(), String>>,
    stop: &CancellationToken,
    kill: &CancellationToken,
    reports: &Reports,
) -> Ended {
    let (mut is_waiting, mut is_asked, mut is_killed) = (true, false, false);
    let mut not_ready = None;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            result = &mut ready, if is_waiting => {
                is_waiting = false;
                match result {
                    Ok(()) => reports.started(),
                    Err(reason) => {
                        signal(pid, Signal::KILL);
                        not_ready = Some(format!("not ready: {reason}"));
                    }
                }
            }
            () = stop.cancelled(), if !is_asked => {
                is_asked = true;
                signal(pid, Signal::TERM);
            }
            () = kill.cancelled(), if !is_killed => {
                is_killed = true;
                signal(pid, Signal::KILL);
            }
        }
    };
    // The number stays taken while the group has members. Without any there is nobody to hit: numbers are given out in
    // turn, so it is not in use again at this moment.
    signal(pid, Signal::KILL);
    Ended { status, not_ready, is_asked, is_killed }
}

/// Sends a signal to the group of a process; one that is gone needs none.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, signal);
    }
}

/// How a process ended and what was done to it.
struct Ended {
    status: io::Result<ExitStatus>,
    not_ready: Option<String>,
    is_asked: bool,
    is_killed: bool,
}

impl Ended {
    fn into_exit(self, final_codes: &[(i32, String)]) -> Exit {
        if let Some(reason) = self.not_ready {
            return Exit::Abnormal(reason);
        }
        let status = match self.status {
            Ok(status) => status,
            Err(error) => return Exit::Abnormal(format!("its end is unknown: {error}")),
        };
        match final_codes.iter().find(|(code, _)| status.code() == Some(*code)) {
            Some((_, meaning)) => Exit::Final(meaning.clone()),
            None => exit_of(status, self.is_asked, self.is_killed),
        }
    }
}

fn exit_of(status: ExitStatus, is_asked: bool, is_killed: bool) -> Exit {
    match (status.code(), status.signal()) {
        (_, Some(number)) if is_killed && number == Signal::KILL.as_raw() => Exit::Killed,
        (_, Some(number)) if is_asked && number == Signal::TERM.as_raw() => Exit::Shutdown,
        (Some(0), _) if is_asked => Exit::Shutdown,
        (Some(0), _) => Exit::Normal,
        (Some(code), _) => Exit::Abnormal(format!("exit code {code}")),
        (None, Some(number)) => Exit::Abnormal(format!("signal {number}")),
        (None, None) => Exit::Abnormal("unknown end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_processes_are_told_apart() {
        let check = |raw: i32, is_asked: bool, is_killed: bool, expected: Exit| {
            assert_eq!(exit_of(ExitStatus::from_raw(raw), is_asked, is_killed), expected, "{raw}");
        };
        let code = |code: i32| code << 8;
        let abnormal = |reason: &str| Exit::Abnormal(reason.to_owned());
        check(code(0), false, false, Exit::Normal);
        check(code(0), true, false, Exit::Shutdown);
        check(15, true, false, Exit::Shutdown);
        check(9, true, true, Exit::Killed);
        check(15, false, false, abnormal("signal 15"));
        check(9, true, false, abnormal("signal 9"));
        check(code(78), true, false, abnormal("exit code 78"));
    }
}
