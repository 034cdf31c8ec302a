//! The one list of processes, `deploy/processes.toml`, and where their programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::failure::{Failure, Kind, about_file};

/// The list of this build, so that the binary works anywhere.
const BUILT_IN: &str = include_str!("../../../../deploy/processes.toml");

/// When a process that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Restart {
    /// Always.
    Permanent,
    /// After an error.
    Transient,
    /// Never.
    Temporary,
}

/// One entry of the list.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    /// `<domain>-<role>`.
    pub(crate) name: String,
    /// File name of its program.
    pub(crate) binary: String,
    /// Port of its HTTP side, before the offset.
    pub(crate) port: u16,
    pub(crate) restart: Restart,
}

/// The processes of a fleet in the order of their start.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ProcessList {
    #[serde(rename = "process")]
    pub(crate) processes: Vec<Process>,
}

impl ProcessList {
    /// The list of this file, else the one of this build.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let text = match file {
            Some(path) => fs::read_to_string(path).map_err(about_file("read", path))?,
            None => BUILT_IN.to_owned(),
        };
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let list: Self = toml::from_str(text)
            .map_err(|error| Failure::failed("The list of processes cannot be read").cause(error.to_string()))?;
        for (index, process) in list.processes.iter().enumerate() {
            // the name becomes part of the path of a log
            let clean = |character: char| character.is_ascii_alphanumeric() || character == '-';
            if process.name.is_empty() || !process.name.chars().all(clean) || process.binary.contains('/') {
                return Err(Failure::failed(format!("The list of processes has a bad name: {:?}", process.name)));
            }
            if list.processes[..index].iter().any(|earlier| earlier.name == process.name) {
                return Err(Failure::failed(format!("The list of processes names {} twice", process.name)));
            }
        }
        Ok(list)
    }

    /// Only the named ones, in the order of the list; all of them when none is named.
    pub(crate) fn only(mut self, names: &[String]) -> Result<Self, Failure> {
        if names.is_empty() {
            return Ok(self);
        }
        if let Some(unknown) = names.iter().find(|name| !self.processes.iter().any(|process| &process.name == *name)) {
            let known: Vec<&str> = self.processes.iter().map(|process| process.name.as_str()).collect();
            return Err(Failure::new(Kind::Usage, format!("There is no process {unknown}"))
                .hint(format!("choose from {}", known.join(", "))));
        }
        self.processes.retain(|process| names.contains(&process.name));
        Ok(self)
    }

    /// The port of a process with the offset.
    pub(crate) fn port(&self, name: &str, offset: u16) -> Option<u16> {
        let process = self.processes.iter().find(|process| process.name == name)?;
        process.port.checked_add(offset)
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
    fn lists_that_would_write_elsewhere_are_refused() {
        let entry =
            |name: &str| format!("[[process]]\nname = \"{name}\"\nbinary = \"x\"\nport = 1\nrestart = \"permanent\"\n");
        assert!(ProcessList::parse(&entry("good-name")).is_ok());
        assert!(ProcessList::parse(&entry("../evil")).is_err());
        assert!(ProcessList::parse(&format!("{}{}", entry("twice"), entry("twice"))).is_err());
        assert!(ProcessList::parse("process = 3").is_err());
    }

    #[test]
    fn missing_programs_are_named_with_the_command_that_builds_them() {
        let text = "[[process]]\nname = \"x\"\nbinary = \"cogo-not-there\"\nport = 1\nrestart = \"permanent\"\n";
        let failure = ProcessList::parse(text).expect("a good list").programs().expect_err("no such program");
        assert_eq!(failure.kind, Kind::NotFound);
        assert!(failure.text().contains("cogo-not-there") && failure.text().contains("cargo build --release"));
    }
}
