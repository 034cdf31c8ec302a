//! What Linux tells of a process: whether it is still the one that we started, its memory and processor time.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// `/proc/<pid>/stat` counts in ticks of `USER_HZ`, 100 per second on every architecture of today.
const MILLISECONDS_PER_TICK: u64 = 10;

/// One process, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its number.
    pub(crate) pid: u32,
    /// When it was started, in ticks since the machine was.
    pub(crate) started_ticks: u64,
    /// What it runs.
    pub(crate) program: PathBuf,
}

impl Identity {
    /// The process of this number as it is now; none if it is gone.
    pub(crate) fn of(pid: u32, program: &Path) -> Option<Self> {
        let started_ticks = Stat::of(pid)?.started_ticks;
        Some(Self { pid, started_ticks, program: program.to_path_buf() })
    }

    /// Whether that very process still runs; one that only waits to be collected does not.
    pub(crate) fn is_alive(&self) -> bool {
        let Some(stat) = Stat::of(self.pid) else { return false };
        stat.state != 'Z' && stat.started_ticks == self.started_ticks && self.runs_our_program()
    }

    fn runs_our_program(&self) -> bool {
        let Ok(running) = fs::read_link(format!("/proc/{}/exe", self.pid)) else { return false };
        let running = running.to_string_lossy();
        // a program that was built anew since is shown with this suffix
        let running = Path::new(running.trim_end_matches(" (deleted)"));
        // for its first moments a child still is the `cogo` that turns into it
        running == self.program || std::env::current_exe().is_ok_and(|own| running == own)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: u32,
    cpu_ticks: u64,
    started_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // the name stands in parentheses and may hold both spaces and parentheses
        let (_, behind_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            cpu_ticks: number(11)? + number(12)?,
            started_ticks: number(19)?,
        })
    }
}

/// Processor time of user and system so far, in ms.
pub(crate) fn cpu_ms(pid: u32) -> Option<u64> {
    Some(Stat::of(pid)?.cpu_ticks * MILLISECONDS_PER_TICK)
}

/// State letter of a child of this process; none if there is no such child.
pub(crate) fn child_state(pid: u32) -> Option<char> {
    Stat::of(pid).filter(|stat| stat.parent == std::process::id()).map(|stat| stat.state)
}

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident, shared pages counted in full.
    pub(crate) rss: u64,
    /// Resident, shared pages counted by their share; none where it may not be read.
    pub(crate) pss: Option<u64>,
}

pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    Some(Memory { rss: kibibytes(&status, "VmRSS:")?, pss: rollup.and_then(|text| kibibytes(&text, "Pss:")) })
}

/// The children of a process, as a server that forks has them.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| Stat::of(pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let text = "42 (a) b) S 7 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 5100 1 2";
        let expected = Stat { state: 'S', parent: 7, cpu_ticks: 400, started_ticks: 5100 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let own = std::env::current_exe().expect("a test has a program");
        let identity = Identity::of(std::process::id(), &own).expect("this process lives");
        assert!(identity.is_alive());
        assert!(!Identity { started_ticks: identity.started_ticks + 1, ..identity.clone() }.is_alive());
        assert!(!Identity { pid: u32::MAX, ..identity }.is_alive());
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(kibibytes("Name:\tx\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2_097_152));
        assert!(memory(std::process::id()).expect("this process has memory").rss > 0);
    }
}
