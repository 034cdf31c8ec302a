//! What the process itself uses of the machine.

use serde::Serialize;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Processor and memory use of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Since the reading before, 1.0 being one core.
    pub(crate) cpu_cores: Option<f32>,
    /// Resident memory.
    pub(crate) memory_bytes: Option<u64>,
}

/// Reads the use of this process; each reading covers the time since the one before.
#[derive(Debug)]
pub(crate) struct UsageMeter {
    /// None where the operating system does not tell.
    source: Option<(System, Pid)>,
}

impl UsageMeter {
    pub(crate) fn new() -> Self {
        Self { source: System::new().ok().zip(sysinfo::get_current_pid().ok()) }
    }

    pub(crate) fn read(&mut self) -> Usage {
        let Some((system, pid)) = &mut self.source else {
            return Usage::default();
        };
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[*pid]), false, what);
        let process = system.process(*pid);
        Usage {
            cpu_cores: process.map(|process| process.cpu_usage() / 100.0).filter(|cores| cores.is_finite()),
            memory_bytes: process.map(sysinfo::Process::memory),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_its_own_memory() {
        let usage = UsageMeter::new().read();
        assert!(usage.memory_bytes.is_some_and(|bytes| bytes > 100_000), "{usage:?}");
    }
}
