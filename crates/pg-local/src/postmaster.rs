//! The server's own process: whether it lives, what it left behind when it did not.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::Error;

/// Line of `postmaster.pid` that holds the port, and the one that holds the state, from 0.
const PORT_LINE: usize = 3;
const STATE_LINE: usize = 7;

/// A living server of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Postmaster {
    pub(crate) pid: Pid,
    /// Missing during the first moments of a start.
    pub(crate) port: Option<u16>,
    pub(crate) accepts_connections: bool,
}

/// The living server of this data directory; a file left by a dead one counts for nothing.
pub(crate) fn living(data: &Path) -> Option<Postmaster> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let postmaster = parse(&text)?;
    works_in(postmaster.pid, data).then_some(postmaster)
}

/// Clears what a crash left, so that the next start is not refused: the file, and orphans that hold the memory.
/// The socket directory must belong to this cluster alone.
pub(crate) fn clear_remains(data: &Path, socket_directory: &Path) -> Result<(), Error> {
    for orphan in processes_in(data) {
        tracing::warn!(process.pid = orphan.as_raw_nonzero().get(), "ended a server process without a parent");
        // The parent is gone, so recovery follows anyway: there is nothing that a softer signal would save.
        if let Err(error) = kill_process(orphan, Signal::KILL) {
            tracing::debug!(%error, "orphan ended by itself");
        }
    }
    // Postgres clears these itself unless the dead process still has its number: as a zombie, or reused by a stranger.
    let entries = fs::read_dir(socket_directory).into_iter().flatten().flatten();
    let sockets = entries.map(|entry| entry.path());
    for remains in sockets.chain([data.join("postmaster.pid")]) {
        match fs::remove_file(&remains) {
            Ok(()) => tracing::warn!(file = %remains.display(), "removed what a crashed server left"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("remove", remains)(error)),
        }
    }
    Ok(())
}

fn parse(text: &str) -> Option<Postmaster> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let pid = Pid::from_raw(lines.first()?.parse().ok()?)?;
    let port = lines.get(PORT_LINE).and_then(|line| line.parse().ok());
    let accepts_connections = lines.get(STATE_LINE) == Some(&"ready");
    Some(Postmaster { pid, port, accepts_connections })
}

/// A server works in its data directory; a stranger that got the same number, or a zombie, does not.
fn works_in(pid: Pid, data: &Path) -> bool {
    if !Path::new("/proc/self/cwd").exists() {
        return test_kill_process(pid).is_ok();
    }
    let Ok(data) = data.canonicalize() else { return false };
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).is_ok_and(|directory| directory == data)
}

/// Server processes of this data directory, where the system can tell.
fn processes_in(data: &Path) -> Vec<Pid> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    pids.filter(|pid| is_postgres(*pid) && works_in(*pid, data)).collect()
}

fn is_postgres(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).is_ok_and(|name| name.trim_end() == "postgres")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_file_is_read_in_every_phase_of_a_start() {
        let starting = parse("42\n/srv/data\n1700000000\n").expect("a process");
        assert_eq!((starting.port, starting.accepts_connections), (None, false));
        let ready = parse("42\n/srv/data\n1700000000\n5432\n/tmp\n127.0.0.1\n 1 2\nready   \n").expect("a process");
        assert_eq!((ready.port, ready.accepts_connections), (Some(5432), true));
        assert_eq!(parse(""), None);
        assert_eq!(parse("0\n"), None);
    }

    #[test]
    fn a_stranger_with_the_number_of_a_dead_server_is_no_server() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let own_number = std::process::id();
        fs::write(directory.path().join("postmaster.pid"), format!("{own_number}\n")).expect("write");
        if Path::new("/proc/self/cwd").exists() {
            assert_eq!(living(directory.path()), None);
        }
        let sockets = directory.path().join("socket");
        fs::create_dir(&sockets).expect("create");
        fs::write(sockets.join(".s.PGSQL.5432.lock"), "42\n").expect("write");
        clear_remains(directory.path(), &sockets).expect("clear");
        assert!(!directory.path().join("postmaster.pid").exists());
        assert_eq!(fs::read_dir(&sockets).expect("sockets").count(), 0);
    }
}
