//! Keeps one process of the fleet alive: starts it, starts it again when it dies, and stops it when told.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    failure::Failure,
    fleet::{Home, Process, Record, backoff::Backoff, list::Restart},
    proc_files::Identity,
};

/// A process that is told to stop finishes or gives back what it has within 10 s; a little more is for the machine.
const GRACE: Duration = Duration::from_secs(12);

/// One process of the fleet and everything needed to run it.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) process: Process,
    pub(crate) program: PathBuf,
    /// Set for the process, beside what this process has.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) home: Home,
    pub(crate) record: Record,
    /// The wish to stop.
    pub(crate) stop: CancellationToken,
    /// The wish to stop at once.
    pub(crate) kill: CancellationToken,
}

/// Why a process is not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exits {
    /// It was told to stop.
    Stopped,
    /// It ended, and its kind is not started again.
    ForGood,
}

enum End {
    Stopped,
    Exited(ExitStatus),
}

impl Supervised {
    /// Runs the process until it is told to stop.
    pub(crate) async fn run(self) -> Exits {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let told = match self.one_life().await {
                Ok(End::Stopped) => return Exits::Stopped,
                Ok(End::Exited(status)) => {
                    let text = describe(status);
                    let again = match self.process.restart {
                        Restart::Permanent => true,
                        Restart::Transient => !status.success(),
                        Restart::Temporary => false,
                    };
                    if !again {
                        info!(process = self.process.name, end = text, "process ended for good");
                        return Exits::ForGood;
                    }
                    text
                }
                Err(failure) => failure.text(),
            };
            let pause = backoff.after(started.elapsed());
            warn!(
                process = self.process.name,
                end = told,
                pause_ms = pause.as_millis(),
                "process died, starting it again"
            );
            tokio::select! {
                () = self.stop.cancelled() => return Exits::Stopped,
                () = tokio::time::sleep(pause) => {}
            }
            self.record.change_process(&self.process.name, |process| process.restarts += 1);
        }
    }

    async fn one_life(&self) -> Result<End, Failure> {
        let mut child = self.start()?;
        let pid = child.id().unwrap_or_default();
        let identity = Identity::of(pid, &self.program);
        self.record.change_process(&self.process.name, |process| process.running = identity);
        info!(process = self.process.name, pid, "process started");
        let end = tokio::select! {
            status = child.wait() => End::Exited(status?),
            () = self.stop.cancelled() => {
                self.stop(&mut child).await?;
                End::Stopped
            }
        };
        let told = match &end {
            End::Stopped => "stopped".to_owned(),
            End::Exited(status) => describe(*status),
        };
        self.record.change_process(&self.process.name, |process| {
            process.running = None;
            process.last_end = Some(told);
        });
        Ok(end)
    }

    /// The child is first this program, which makes sure that it never outlives its parent and then becomes the other.
    fn start(&self) -> Result<Child, Failure> {
        let log = self.home.open_log(&self.process.name)?;
        let launcher = std::env::current_exe()?;
        let mut command = Command::new(launcher);
        command
            .args(["launch", "--parent", &std::process::id().to_string(), "--"])
            .arg(&self.program)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // a terminal's Ctrl-C is for us, who stop the children in order
            .process_group(0);
        command
            .spawn()
            .map_err(|error| Failure::failed(format!("Could not start {}", self.process.binary)).because(&error))
    }

    async fn stop(&self, child: &mut Child) -> Result<(), Failure> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // the child is not collected yet, so the number is still its own
            let _ = kill_process(pid, Signal::TERM);
        }
        tokio::select! {
            ended = child.wait() => {
                ended?;
                return Ok(());
            }
            () = tokio::time::sleep(GRACE) => error!(process = self.process.name, "process did not stop in time, killing it"),
            () = self.kill.cancelled() => {}
        }
        child.kill().await?;
        Ok(())
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(describe(ExitStatus::from_raw(78 << 8)), "exit code 78");
        assert_eq!(describe(ExitStatus::from_raw(9)), "signal 9");
    }
}
