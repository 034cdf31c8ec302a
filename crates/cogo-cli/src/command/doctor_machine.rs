//! What `cogo doctor` looks at on this machine: programs, ports, disk.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::doctor::Finding,
    context::Context,
    fleet::{FleetState, ProcessList},
};

/// Oldest major version that the migrations apply to.
pub(crate) const OLDEST_POSTGRES: u32 = 15;
const MEBIBYTE: u64 = 1024 * 1024;
/// Postgres stops when the disk is full; its log of changes alone may take 1 GiB.
const LITTLE_DISK: u64 = 2048 * MEBIBYTE;
const TOO_LITTLE_DISK: u64 = 256 * MEBIBYTE;

pub(crate) fn programs(list: &ProcessList) -> Finding {
    const NAME: &str = "programs";
    match list.programs() {
        Ok(programs) => Finding::ok(NAME, format!("all {} programs of the fleet are there", programs.len())),
        Err(failure) => {
            let detail = failure.text().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Finding::fail(NAME, detail, "cargo build --release --workspace --bins")
        }
    }
}

/// The programs of the embedded Postgres; not needed with a database of one's own.
pub(crate) fn postgres_programs(context: &Context) -> Finding {
    const NAME: &str = "postgres programs";
    if context.given_database_url.is_some() {
        return Finding::ok(NAME, "not needed, DATABASE_URL is set");
    }
    let found: Vec<(PathBuf, u32)> = candidates()
        .into_iter()
        .filter_map(|path| Some((major_version(&path)?, path)))
        .map(|(version, path)| (path, version))
        .collect();
    match found.iter().find(|(_, version)| *version >= OLDEST_POSTGRES) {
        Some((path, version)) => Finding::ok(NAME, format!("version {version} at {}", path.display())),
        None if found.is_empty() => Finding::warn(
            NAME,
            "none installed; the first `cogo up` would download them",
            "apt-get install postgresql, or brew install postgresql, or set DATABASE_URL",
        ),
        None => Finding::fail(
            NAME,
            format!("only versions below {OLDEST_POSTGRES} are installed"),
            format!("install Postgres {OLDEST_POSTGRES} or later"),
        ),
    }
}

/// Every `postgres` on the path and in the usual places, those with higher versions first.
fn candidates() -> Vec<PathBuf> {
    let on_path =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let mut versioned: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr/local/opt", "/opt/homebrew/opt", "/usr/pgsql"]
        .iter()
        .flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path().join("bin"))
        .collect();
    versioned.sort();
    versioned.reverse();
    let all = on_path.into_iter().chain(versioned).map(|place| place.join("postgres"));
    all.filter(|program| program.is_file()).collect()
}

fn major_version(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    major_of(&String::from_utf8_lossy(&output.stdout))
}

pub(crate) fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    number.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

pub(crate) fn disk(context: &Context) -> Finding {
    const NAME: &str = "disk";
    // the directory may not be there yet; its nearest parent is on the same disk
    let home = context.home.path();
    let Some(existing) = home.ancestors().find(|path| path.exists()) else {
        return Finding::warn(NAME, format!("{} cannot be looked at", home.display()), "choose another --data-dir");
    };
    let room = match rustix::fs::statvfs(existing) {
        Ok(facts) => facts.f_bavail.saturating_mul(facts.f_frsize),
        Err(error) => return Finding::warn(NAME, format!("{}: {error}", existing.display()), "check the directory"),
    };
    let detail = format!("{} MiB free at {}", room / MEBIBYTE, existing.display());
    match room {
        room if room < TOO_LITTLE_DISK => Finding::fail(NAME, detail, "free some space or choose another --data-dir"),
        room if room < LITTLE_DISK => Finding::warn(NAME, detail, "Postgres may need more than that"),
        _ => Finding::ok(NAME, detail),
    }
}

/// Each port is free, or held by the fleet of this directory.
pub(crate) fn ports(list: &ProcessList, state: Option<&FleetState>, offset: u16) -> Finding {
    const NAME: &str = "ports";
    let living = state.into_iter().flat_map(|state| &state.processes).filter(|process| process.living().is_some());
    let ours: BTreeSet<u16> = living.map(|process| process.port).collect();
    let (mut free, mut own, mut taken) = (0, 0, Vec::new());
    for process in &list.processes {
        match list.port(&process.name, offset) {
            None => taken.push(format!("{} is beyond 65535", process.name)),
            Some(port) if ours.contains(&port) => own += 1,
            Some(port) if TcpListener::bind(("127.0.0.1", port)).is_ok() => free += 1,
            Some(port) => taken.push(format!("{port} ({})", process.name)),
        }
    }
    if taken.is_empty() {
        return Finding::ok(NAME, format!("{free} free, {own} held by this fleet"));
    }
    Finding::fail(NAME, format!("taken by another program: {}", taken.join(", ")), "stop it, or use --port-offset N")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    #[test]
    fn versions_are_read_from_what_the_program_says() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major_of("18beta2"), Some(18));
        assert_eq!(major_of("no number"), None);
    }

    #[test]
    fn a_taken_port_is_named_with_its_process() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let mut list = ProcessList::read(None).expect("the built-in list");
        list.processes.truncate(1);
        list.processes[0].port = port;
        let finding = ports(&list, None, 0);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.detail.contains(&port.to_string()) && finding.detail.contains(&list.processes[0].name));
        drop(listener);
        assert_eq!(ports(&list, None, 0).verdict, Verdict::Ok);
    }
}
