//! The fleet of a chaos run: real processes of this program under a tree as `cogo up` has it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
};

use cogo_bus_check::{Hints, Proxy};
use cogo_contracts::exit_code::SUPERSEDED;
use cogo_supervision::{ChildSpec, Event, Handle, NodeState, Options, ProcessWork, Restart, Supervisor, Work};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, sync::broadcast};

use super::schedule::{Crew, KEEPER, Seat, WORKER};
use crate::{
    failure::{Failure, about_file},
    fleet::{ProcessList, tree},
};

/// What begins the name of a process that takes over a slot beside the one that the tree holds in it.
const STAND_IN: &str = "stand-in-";
/// Events that may wait for the observer.
const EVENTS: usize = 4096;

/// Where a chaos run keeps its files.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    directory: PathBuf,
}

impl Places {
    pub(crate) fn make(directory: PathBuf) -> Result<Self, Failure> {
        let places = Self { directory };
        for path in [places.logs(), places.journals(), places.clocks()] {
            fs::create_dir_all(&path).map_err(about_file("create", &path))?;
        }
        Ok(places)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Where each process notes what it does.
    pub(crate) fn journals(&self) -> PathBuf {
        self.directory.join("journals")
    }

    fn clocks(&self) -> PathBuf {
        self.directory.join("clocks")
    }

    /// Holds by how many ms the clock that makes a process's ids is off; absent: not at all.
    fn clock(&self, seat: Seat) -> PathBuf {
        self.clocks().join(format!("{}-{}", seat.process, seat.slot))
    }

    /// Holds by how many seconds the wall clock of a process is off, for the library that shows it another time.
    fn wall_clock(&self, seat: Seat) -> PathBuf {
        self.clock(seat).with_extension("wall")
    }
}

/// The running fleet.
pub(crate) struct ChaosFleet {
    pub(crate) handle: Handle,
    works: BTreeMap<Seat, Work>,
    places: Places,
    /// Stands before the database for some of the workers.
    proxy: Proxy,
}

impl ChaosFleet {
    /// Starts everybody; the events begin before the first process.
    pub(crate) async fn start(
        crew: Crew,
        url: &str,
        places: &Places,
    ) -> Result<(Self, broadcast::Receiver<Event>), Failure> {
        let (proxy, through) = Proxy::before(url)
            .await
            .map_err(|error| Failure::failed("Put a proxy before the database").cause(format!("{error:#}")))?;
        let of = |seat: Seat| {
            // every fourth worker
            let behind_proxy = seat.process == WORKER && seat.slot % 4 == 3;
            let url = if behind_proxy { &through } else { url };
            (seat, work(seat, url, places))
        };
        let works: BTreeMap<Seat, Work> = crew.seats().map(of).collect();
        let list = ProcessList::parse(&list(crew))?;
        let spec = tree(
            &list,
            |process, slot| {
                let name = if process.name == KEEPER { KEEPER } else { WORKER };
                works[&Seat { process: name, slot }].clone()
            },
            0,
        );
        let options = Options { events: EVENTS, log: false, ..Options::default() };
        let handle = Supervisor::start(spec, &options)
            .map_err(|error| Failure::failed("The tree of the fleet cannot be run").because(&error))?;
        let events = handle.events();
        Ok((Self { handle, works, places: places.clone(), proxy }, events))
    }

    /// The process that the tree holds in a slot.
    pub(crate) async fn pid(&self, seat: Seat) -> Option<u32> {
        self.handle.tree().await.find(&path(seat))?.pid
    }

    /// Whether the tree has given up the process of a slot.
    pub(crate) async fn is_down(&self, seat: Seat) -> bool {
        self.handle.tree().await.find(&path(seat)).is_some_and(|node| node.state == NodeState::Stopped)
    }

    /// Starts a second process for a slot.
    pub(crate) async fn start_stand_in(&self, seat: Seat) -> Result<(), Failure> {
        let work = self.works[&seat].clone();
        let child = ChildSpec::worker(format!("{STAND_IN}{}", seat.slot), work).restart(Restart::Temporary);
        self.handle.start_child(&group(seat), child).await.map_err(|error| failed("Start a stand-in", &error))
    }

    /// Its number.
    pub(crate) async fn pid_of_stand_in(&self, seat: Seat) -> Option<u32> {
        self.handle.tree().await.find(&stand_in(seat))?.pid
    }

    /// Ends the second process of a slot in order, and starts the first one again if the tree has given it up.
    pub(crate) async fn end_stand_in(&self, seat: Seat) -> Result<(), Failure> {
        self.handle.terminate_child(&stand_in(seat)).await.map_err(|error| failed("End a stand-in", &error))?;
        if !self.is_down(seat).await {
            return Ok(());
        }
        self.handle.restart_child(&path(seat)).await.map_err(|error| failed("Start a process again", &error))
    }

    /// From now on the clock of a process is off by so many ms: its wall clock, or where nothing can shift that, the one
    /// that makes its ids.
    pub(crate) fn set_clock(&self, seat: Seat, off_ms: i64) -> Result<(), Failure> {
        let (path, off) = match wall_clock_library() {
            Some(_) => (self.places.wall_clock(seat), format!("{:+}", off_ms / 1000)),
            None => (self.places.clock(seat), off_ms.to_string()),
        };
        write_at_once(&path, &off).map_err(about_file("write", &path))
    }

    /// What becomes of notifications to the workers behind the proxy.
    pub(crate) fn hints(&self, hints: Hints) {
        self.proxy.hints(hints);
    }

    /// Lets everybody go on who was stopped; one that is stopped cannot end in order.
    pub(crate) async fn wake_all(&self) {
        for pid in self.handle.tree().await.flatten().iter().filter_map(|node| node.pid) {
            // one that is gone needs none
            let _ = signal(pid, Signal::CONT);
        }
    }

    /// Ends everybody in order, or at once when `hurry` comes.
    pub(crate) async fn stop(self, hurry: impl Future<Output = ()>) {
        self.wake_all().await;
        self.handle.shutdown();
        tokio::select! {
            _ = self.handle.ended() => {}
            () = hurry => {
                self.handle.kill();
                self.handle.ended().await;
            }
        }
    }
}

/// Sends a signal to a process of the fleet.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::failed("That is no number of a process"))?;
    kill_process(pid, signal).map_err(|error| Failure::failed("Signal a process").because(&error))
}

/// The slot of a path in the tree, that of a stand-in being the one that it takes.
pub(crate) fn seat_of(path: &str) -> Option<Seat> {
    let (group, name) = path.rsplit_once('/')?;
    let process = [WORKER, KEEPER].into_iter().find(|process| group.ends_with(process))?;
    let slot = name.strip_prefix(STAND_IN).unwrap_or(name).parse().ok()?;
    Some(Seat { process, slot })
}

fn group(seat: Seat) -> String {
    format!("chaos/{}", seat.process)
}

fn path(seat: Seat) -> String {
    format!("{}/{}", group(seat), seat.slot)
}

fn stand_in(seat: Seat) -> String {
    format!("{}/{STAND_IN}{}", group(seat), seat.slot)
}

/// The list of processes as `cogo up` would read it; keepers come first and go last.
fn list(crew: Crew) -> String {
    let entry = |name: &str, count: u32| {
        format!(
            "[[process]]\nname = \"{name}\"\nbinary = \"cogo\"\nport = 1\nrestart = \"permanent\"\n\
             pool = {{ min = {count}, max = {count} }}\n"
        )
    };
    entry(KEEPER, crew.keepers) + &entry(WORKER, crew.workers)
}

fn work(seat: Seat, url: &str, places: &Places) -> Work {
    let (url, places) = (url.to_owned(), places.clone());
    let process = ProcessWork::new(move || command(seat, &url, &places));
    Work::process(process.final_code(SUPERSEDED, "superseded: another process owns its slot"))
}

/// Nothing of the environment of this program reaches a process but the path: its settings are those of the frame.
fn command(seat: Seat, url: &str, places: &Places) -> io::Result<Command> {
    let log = places.logs().join(format!("{}-{}.log", seat.process, seat.slot));
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    // should somebody take the port, the process ends and is started on another
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["chaos-agent", "--parent", &std::process::id().to_string(), seat.process])
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("DATABASE_URL", url)
        .env("COGO_PORT", port.to_string())
        .env("COGO_AGENT_SLOT", seat.slot.to_string())
        .env("COGO_CONFIG_DIR", places.directory())
        .env("COGO_LOG_FORMAT", "json")
        .env("COGO_CHAOS_JOURNALS", places.journals())
        .env("COGO_CHAOS_CLOCK", places.clock(seat))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(library) = wall_clock_library() {
        let wall_clock = places.wall_clock(seat);
        if !wall_clock.exists() {
            write_at_once(&wall_clock, "+0")?;
        }
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", wall_clock)
            .env("FAKETIME_CACHE_DURATION", "1")
            // a clock that is set moves the time of day and no waits
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1")
            .env("NO_FAKE_STAT", "1");
    }
    Ok(command)
}

/// In one step, since the process may read it at any time.
fn write_at_once(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

/// libfaketime, where the machine has it: the only way to set the wall clock of one process.
pub(crate) fn wall_clock_library() -> Option<&'static Path> {
    static FOUND: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(|directory| Path::new(directory).join("faketime/libfaketimeMT.so.1"))
            .into_iter()
            .find(|library| library.is_file())
    });
    FOUND.as_deref()
}

fn failed(what: &str, error: &impl std::fmt::Display) -> Failure {
    Failure::failed(what).cause(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_slot_and_so_does_that_of_a_stand_in() {
        let seat = Seat { process: WORKER, slot: 3 };
        assert_eq!((seat_of(&path(seat)), seat_of(&stand_in(seat))), (Some(seat), Some(seat)));
        assert_eq!(seat_of("chaos/chaos-keeper/0"), Some(Seat { process: KEEPER, slot: 0 }));
        assert_eq!((seat_of("chaos"), seat_of("chaos/chaos-worker")), (None, None));
    }

    #[test]
    fn the_list_is_one_that_cogo_up_would_take() {
        let list = ProcessList::parse(&list(Crew { workers: 8, keepers: 2 })).expect("a good list");
        let counts: Vec<u32> = list.processes.iter().map(crate::fleet::Process::first_instances).collect();
        assert_eq!(counts, [2, 8]);
    }
}
