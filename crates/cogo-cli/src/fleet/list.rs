//! The one list of processes, `deploy/processes.toml`, and where their programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use cogo_supervision::{Restart, Strategy};
use serde::Deserialize;

use crate::{
    failure::{Failure, Kind, about_file},
    fleet::{OwnSettings, list_check::check},
};

/// The list of this build, so that the binary works anywhere.
const BUILT_IN: &str = include_str!("../../../../deploy/processes.toml");
/// A service that is told to stop finishes or gives back what it has within 10 s; a little more is for the machine.
const SHUTDOWN_S: u64 = 12;

/// When a group gives up; what is absent has the default of its floor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Escalation {
    /// What is restarted together.
    pub(crate) strategy: Option<Strategy>,
    /// So many restarts within the period; one more and the group gives up.
    pub(crate) intensity: Option<u32>,
    pub(crate) period_s: Option<u64>,
}

/// A part of the fleet that fails together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Domain {
    pub(crate) name: String,
    /// The domain that it stands in; absent: the root.
    pub(crate) parent: Option<String>,
    /// Whether it is started again after it gave up.
    #[serde(default = "permanent")]
    pub(crate) restart: Restart,
    pub(crate) strategy: Option<Strategy>,
    pub(crate) intensity: Option<u32>,
    pub(crate) period_s: Option<u64>,
}

/// How many instances of one program there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    #[serde(default = "one")]
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// How many are started with the fleet; absent: `min`.
    pub(crate) start: Option<u32>,
}

/// One entry of the list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// `<domain>-<role>`.
    pub(crate) name: String,
    /// File name of its program.
    pub(crate) binary: String,
    /// Absent: the name up to its first `-`.
    domain: Option<String>,
    /// 1 strategic, 2 operational, 3 external.
    pub(crate) level: Option<u8>,
    /// Port of its HTTP side, before the offset.
    pub(crate) port: u16,
    pub(crate) restart: Restart,
    /// What it claims.
    pub(crate) route: Option<Claimed>,
    /// What of its instances is restarted together.
    pub(crate) strategy: Option<Strategy>,
    /// Absent: it is started again for ever, with growing pauses.
    pub(crate) intensity: Option<u32>,
    pub(crate) period_s: Option<u64>,
    /// Time between the wish to stop and the kill; 0 kills at once.
    pub(crate) shutdown_s: Option<u64>,
    /// Absent: one instance, always.
    pub(crate) pool: Option<Pool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claimed {
    pub(crate) service: String,
    pub(crate) role: String,
    pub(crate) shard: u16,
}

const fn permanent() -> Restart {
    Restart::Permanent
}

const fn one() -> u32 {
    1
}

impl Process {
    /// The domain that it belongs to.
    pub(crate) fn domain(&self) -> &str {
        let first = || self.name.split('-').next().unwrap_or_default();
        self.domain.as_deref().unwrap_or_else(first)
    }

    /// Its bounds; without a pool exactly one.
    pub(crate) fn pool(&self) -> Pool {
        self.pool.unwrap_or(Pool { min: 1, max: 1, start: None })
    }

    /// Instances that are started with the fleet.
    pub(crate) fn first_instances(&self) -> u32 {
        let pool = self.pool();
        pool.start.unwrap_or(pool.min)
    }

    /// Seconds between the wish to stop and the kill.
    pub(crate) fn shutdown_s(&self) -> u64 {
        self.shutdown_s.unwrap_or(SHUTDOWN_S)
    }
}

/// The processes of a fleet in the order of their start, and the domains that they stand in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessList {
    #[serde(default)]
    pub(crate) root: Escalation,
    #[serde(rename = "domain", default)]
    pub(crate) domains: Vec<Domain>,
    #[serde(rename = "process")]
    pub(crate) processes: Vec<Process>,
}

impl ProcessList {
    /// The list of this file, else the one of this build.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        match file {
            Some(path) => {
                let text = fs::read_to_string(path).map_err(about_file("read", path))?;
                Self::parse(&text).map_err(|failure| failure.hint(format!("mend {}", path.display())))
            }
            None => Self::parse(BUILT_IN),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let list: Self = toml::from_str(text).map_err(|error| {
            Failure::failed("The list of processes cannot be read").cause(error.to_string().trim_end())
        })?;
        check(&list)?;
        Ok(list)
    }

    /// Only the named ones, in the order of the list; all of them when none is named.
    pub(crate) fn only(mut self, names: &[String]) -> Result<Self, Failure> {
        if names.is_empty() {
            return Ok(self);
        }
        if let Some(unknown) = names.iter().find(|name| self.process(name).is_none()) {
            let known: Vec<&str> = self.processes.iter().map(|process| process.name.as_str()).collect();
            return Err(Failure::new(Kind::Usage, format!("There is no process {unknown}"))
                .hint(format!("choose from {}", known.join(", "))));
        }
        self.processes.retain(|process| names.contains(&process.name));
        Ok(self)
    }

    /// The entry of this name.
    pub(crate) fn process(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// The domain of this name, if the list says anything of it.
    pub(crate) fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.name == name)
    }

    /// The names of a domain from the top down to itself.
    pub(crate) fn line_of(&self, domain: &str) -> Vec<String> {
        let mut line = vec![domain.to_owned()];
        let mut next = self.domain(domain).and_then(|domain| domain.parent.as_deref());
        while let Some(name) = next {
            line.insert(0, name.to_owned());
            next = self.domain(name).and_then(|domain| domain.parent.as_deref());
        }
        line
    }

    /// The path of a process in the tree.
    pub(crate) fn path_of(&self, process: &Process) -> String {
        format!("{}/{}", self.line_of(process.domain()).join("/"), process.name)
    }

    /// The port of a process with the offset; none if there is no such port.
    pub(crate) fn port(&self, name: &str, offset: u16) -> Option<u16> {
        self.process(name)?.port.checked_add(offset)
    }

    /// Where the first instance of a process listens: as its own settings say, else as the list does with the offset.
    pub(crate) fn first_port(&self, process: &Process, offset: u16) -> Result<u16, Failure> {
        if let Some(port) = OwnSettings::of(process)?.port()? {
            return Ok(port);
        }
        self.port(&process.name, offset).ok_or_else(|| {
            Failure::new(Kind::Usage, format!("--port-offset {offset} puts {} beyond 65535", process.name))
        })
    }

    /// Where each program is: beside this one, else on the path.
    pub(crate) fn programs(&self) -> Result<Vec<PathBuf>, Failure> {
        let beside = env::current_exe().ok().and_then(|own| own.parent().map(Path::to_path_buf));
        let search_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
        let places: Vec<PathBuf> = beside.into_iter().chain::<Vec<PathBuf>>(search_path).collect();
        let found: Vec<Option<PathBuf>> = self.processes.iter().map(|process| find(&process.binary, &places)).collect();
        let missing: Vec<&str> = (self.processes.iter().zip(&found))
            .filter(|(_, program)| program.is_none())
            .map(|(process, _)| process.binary.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        Err(Failure::not_found(format!("Missing programs: {}", missing.join(", ")))
            .cause("they are neither beside this `cogo` nor on the PATH")
            .hint("build them with `cargo build --release --workspace --bins`, or choose some with `--only`"))
    }
}

fn find(binary: &str, places: &[PathBuf]) -> Option<PathBuf> {
    let program = places.iter().map(|place| place.join(binary)).find(|program| program.is_file())?;
    program.canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &ProcessList) -> Vec<&str> {
        list.processes.iter().map(|process| process.name.as_str()).collect()
    }

    #[test]
    fn the_list_of_this_build_is_good() {
        let list = ProcessList::read(None).expect("the built-in list");
        assert!(names(&list).contains(&"gateway-api"));
        assert_eq!(list.port("gateway-api", 100), Some(3100));
        assert_eq!(list.port("gateway-api", u16::MAX), None);
        let chat = list.process("gateway-chat").expect("it is listed");
        assert_eq!(list.path_of(chat), "gateway/gateway-chat");
    }

    #[test]
    fn a_choice_keeps_the_order_and_knows_its_names() {
        let list = ProcessList::read(None).expect("the built-in list");
        let chosen = list.clone().only(&["gateway-api".to_owned(), "bus-reclaimer".to_owned()]).expect("both exist");
        assert_eq!(names(&chosen), ["bus-reclaimer", "gateway-api"]);
        let failure = list.only(&["nobody".to_owned()]).expect_err("there is no such process");
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.text().contains("gateway-api"));
    }

    #[test]
    fn missing_programs_are_named_with_the_command_that_builds_them() {
        let text = "[[process]]\nname = \"x\"\nbinary = \"cogo-not-there\"\nport = 1\nrestart = \"permanent\"\n";
        let failure = ProcessList::parse(text).expect("a good list").programs().expect_err("no such program");
        assert_eq!(failure.kind, Kind::NotFound);
        assert!(failure.text().contains("cogo-not-there") && failure.text().contains("cargo build --release"));
    }
}
