//! Ends processes of a fleet whose `cogo up` is gone.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{fleet::FleetState, proc_files::Identity};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What became of processes that had to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// How many were still there.
    pub(crate) found: usize,
    /// Of those, how many did not leave by themselves.
    pub(crate) killed: usize,
}

/// Tells every process that outlived its `cogo up` to stop, in reverse order, and ends the deaf ones after `grace`.
pub(crate) async fn end_all(state: &FleetState, grace: Duration) -> Ended {
    let left: Vec<&Identity> = state.processes.iter().rev().filter_map(|process| process.living()).collect();
    let killed = end(&left, grace).await;
    Ended { found: left.len(), killed }
}

/// Ends these processes; answers how many had to be killed.
async fn end(processes: &[&Identity], grace: Duration) -> usize {
    for identity in processes {
        signal(identity, Signal::TERM);
    }
    let deadline = Instant::now() + grace;
    while Instant::now() < deadline && processes.iter().any(|identity| identity.is_alive()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut killed = 0;
    for identity in processes.iter().filter(|identity| identity.is_alive()) {
        signal(identity, Signal::KILL);
        killed += 1;
    }
    killed
}

/// Sends a signal to that very process; one that is gone needs none.
pub(crate) fn signal(identity: &Identity, signal: Signal) {
    let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| identity.is_alive()) {
        // an error means that it ended just now
        let _ = kill_process(pid, signal);
    }
}
