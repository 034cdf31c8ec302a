//! What happens in the tree, written to the state of the fleet and to its log.

use std::{collections::HashSet, path::PathBuf};

use cogo_supervision::{Event, Exit, Handle, Happened, Node, Outcome};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tracing::{error, info, warn};

use crate::{
    fleet::{Herald, Record},
    proc_files::Identity,
};

/// Listens until the tree is over.
#[derive(Debug)]
pub(crate) struct Chronicle {
    pub(crate) record: Record,
    /// The processes by their paths in the tree.
    pub(crate) processes: HashSet<String>,
    /// Takes the path of each process that was started as a whole.
    pub(crate) started: mpsc::UnboundedSender<String>,
    /// Tells the rest of the system.
    pub(crate) herald: Herald,
}

/// How the fleet ended.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    /// Path of the group that gave up first of those that led to the end.
    pub(crate) gave_up: Option<String>,
}

impl Chronicle {
    /// Writes down everything that these events tell.
    pub(crate) async fn run(self, handle: Handle, mut events: broadcast::Receiver<Event>) -> Ending {
        let mut gave_up: Option<String> = None;
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                outcome = handle.ended() => {
                    // what was sent before the end is in the channel by now
                    while let Ok(event) = events.try_recv() {
                        self.write(&event, &mut gave_up);
                    }
                    return Ending { outcome, gave_up };
                }
            };
            match event {
                Ok(event) => self.write(&event, &mut gave_up),
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "the log of the fleet misses events");
                    self.catch_up(&handle.tree().await);
                }
                Err(RecvError::Closed) => return Ending { outcome: handle.ended().await, gave_up },
            }
        }
    }

    /// Takes over what a picture shows of each instance.
    fn catch_up(&self, tree: &Node) {
        for node in tree.flatten() {
            self.record.change_path(&node.path, |process| {
                if process.running.as_ref().map(|identity| identity.pid) != node.pid {
                    process.running = node.pid.and_then(|pid| Identity::of(pid, &process.program));
                }
                process.restarts = node.restarts;
                if let Some(last) = &node.last_exit {
                    process.last_end = Some(last.exit.to_string());
                }
            });
        }
    }

    fn write(&self, event: &Event, gave_up: &mut Option<String>) {
        let path = event.path.as_str();
        match &event.happened {
            Happened::Spawned { pid } => {
                let program = |program: &PathBuf| Identity::of(*pid, program);
                self.record.change_path(path, |process| process.running = program(&process.program));
            }
            Happened::Started { restarts } => {
                self.record.change_path(path, |process| process.restarts = *restarts);
                if self.processes.contains(path) {
                    // whoever looks after the instances may be gone already
                    let _ = self.started.send(path.to_owned());
                }
            }
            Happened::Exited { exit } => self.record.change_path(path, |process| {
                process.running = None;
                process.last_end = Some(exit.to_string());
            }),
            Happened::StartFailed { reason } => self.record.change_path(path, |process| {
                process.running = None;
                process.last_end = Some(reason.clone());
            }),
            // the first of a chain is the one to tell of; a chain starts with a process
            Happened::GaveUp { .. } if gave_up.is_none() || self.processes.contains(path) => {
                *gave_up = Some(path.to_owned());
            }
            _ => {}
        }
        self.herald.tell(event);
        log(event);
    }
}

/// One line for each event; `event` is its stable name, `agent` the path in the tree.
fn log(event: &Event) {
    let agent = if event.path.is_empty() { "fleet" } else { event.path.as_str() };
    match &event.happened {
        Happened::Spawned { pid } => info!(event = "spawn", agent, pid, "process started"),
        Happened::Started { restarts: 0 } | Happened::Starting => {}
        Happened::Started { restarts } => info!(event = "restart", agent, restarts, "started again"),
        Happened::StartFailed { reason } => warn!(event = "start_failed", agent, exit = reason, "did not start"),
        Happened::Stopping => info!(event = "stopping", agent, "told to stop"),
        Happened::Killing => warn!(event = "kill", agent, "killing it"),
        Happened::Leaked => error!(event = "leak", agent, "could not be killed, the fleet ends"),
        Happened::RestartPlanned { pause } => {
            info!(
                event = "restart_planned",
                agent,
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "will be started again"
            );
        }
        Happened::GaveUp { child, intensity, period } => {
            let period_s = period.as_secs();
            error!(event = "escalation", agent, child, intensity, period_s, "too many restarts, its group gives up");
        }
        Happened::AutoShutdown { child } => info!(event = "auto_shutdown", agent, child, "ends with its child"),
        Happened::Exited { exit } => log_exit(agent, exit),
    }
}

fn log_exit(agent: &str, exit: &Exit) {
    let reason = exit.to_string();
    match exit {
        Exit::Abnormal(_) => warn!(event = "crash", agent, exit = reason, "ended by itself"),
        Exit::Final(_) => error!(event = "crash", agent, exit = reason, "ended for good, it is not started again"),
        Exit::Killed => warn!(event = "terminate", agent, exit = reason, "ended"),
        Exit::Normal | Exit::Shutdown => info!(event = "terminate", agent, exit = reason, "ended"),
    }
}
