//! What a name on the command line means in the tree of a fleet.

use cogo_registry_core::Subject;

use crate::{failure::Failure, fleet::ProcessList};

/// A part of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One instance of a process.
    Instance {
        /// Name of the process.
        process: String,
        slot: u32,
        /// Path of the instance in the tree.
        path: String,
    },
    /// Every instance of a process.
    Process {
        /// Its name.
        process: String,
        /// Its path in the tree.
        path: String,
    },
    /// Every process of a domain and of those within it.
    Domain {
        /// Its path in the tree.
        path: String,
    },
}

impl Target {
    /// `<process>/<slot>`, a process, a domain, or a path as `cogo tree` has it; a process comes before a domain of its
    /// name.
    pub(crate) fn of(list: &ProcessList, name: &str) -> Result<Self, Failure> {
        let by_path = list.processes.iter().find(|process| list.path_of(process) == name);
        if let Some(process) = list.process(name).or(by_path) {
            return Ok(Self::Process { process: process.name.clone(), path: list.path_of(process) });
        }
        let lines = list.processes.iter().map(|process| list.line_of(process.domain()));
        for line in lines {
            if let Some(depth) =
                (1..=line.len()).find(|depth| line[depth - 1] == name || line[..*depth].join("/") == name)
            {
                return Ok(Self::Domain { path: line[..depth].join("/") });
            }
        }
        if let Some((process, slot)) = name.rsplit_once('/')
            && let Ok(slot) = slot.parse()
            && let Ok(Self::Process { process, path }) = Self::of(list, process)
        {
            return Ok(Self::Instance { process, slot, path: format!("{path}/{slot}") });
        }
        Err(unknown(list, name))
    }

    /// What a standing order is about; none if the fleet has no such part.
    pub(crate) fn of_subject(list: &ProcessList, subject: &Subject) -> Option<Self> {
        let known = |process: &str| list.process(process).map(|process| list.path_of(process));
        match subject {
            Subject::Instance { process, slot, .. } => {
                let path = format!("{}/{slot}", known(process)?);
                Some(Self::Instance { process: process.clone(), slot: *slot, path })
            }
            Subject::Process { process, .. } => Some(Self::Process { path: known(process)?, process: process.clone() }),
            Subject::Domain { domain } => {
                let lines = list.processes.iter().map(|process| list.line_of(process.domain()));
                let path = lines.filter_map(|line| {
                    let depth = line.iter().position(|name| name == domain)?;
                    Some(line[..=depth].join("/"))
                });
                path.min().map(|path| Self::Domain { path })
            }
        }
    }

    /// What an order about it is about, for whoever does not know this fleet.
    pub(crate) fn subject(&self, list: &ProcessList) -> Subject {
        let domain_of =
            |process: &str| list.process(process).map(|process| process.domain().to_owned()).unwrap_or_default();
        match self {
            Self::Instance { process, slot, .. } => {
                Subject::Instance { domain: domain_of(process), process: process.clone(), slot: *slot }
            }
            Self::Process { process, .. } => Subject::Process { domain: domain_of(process), process: process.clone() },
            Self::Domain { path } => Subject::Domain { domain: path.rsplit('/').next().unwrap_or_default().to_owned() },
        }
    }

    /// Its path in the tree.
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Instance { path, .. } | Self::Process { path, .. } | Self::Domain { path } => path,
        }
    }

    /// Whether the instance at this path is part of it.
    pub(crate) fn holds(&self, instance: &str) -> bool {
        let rest = instance.strip_prefix(self.path());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// There is no such part; which there are.
fn unknown(list: &ProcessList, name: &str) -> Failure {
    let mut known: Vec<String> = Vec::new();
    for process in &list.processes {
        for name in list.line_of(process.domain()).into_iter().chain([process.name.clone()]) {
            if !known.contains(&name) {
                known.push(name);
            }
        }
    }
    Failure::not_found(format!("The fleet has no process, domain or instance {name}"))
        .hint(format!("choose from {}; an instance is <process>/<slot>, as in `cogo tree`", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_slots_are_understood() {
        let entry = |name: &str, domain: &str| {
            format!(
                "[[process]]\nname = \"{name}\"\nbinary = \"x\"\nport = 1\nrestart = \"permanent\"\ndomain = \"{domain}\"\n"
            )
        };
        let nested = "[[domain]]\nname = \"rag\"\nparent = \"knowledge\"\n[[domain]]\nname = \"knowledge\"\n";
        let text = entry("rag-embed", "rag") + &entry("metrics", "metrics") + nested;
        let list = ProcessList::parse(&text).expect("a good list");
        let path = |name: &str| Target::of(&list, name).map(|target| target.path().to_owned());
        for (name, expected) in [
            ("rag-embed", "knowledge/rag/rag-embed"),
            ("knowledge/rag/rag-embed", "knowledge/rag/rag-embed"),
            ("rag-embed/3", "knowledge/rag/rag-embed/3"),
            ("knowledge/rag/rag-embed/3", "knowledge/rag/rag-embed/3"),
            ("rag", "knowledge/rag"),
            ("knowledge/rag", "knowledge/rag"),
            ("knowledge", "knowledge"),
            // a process before a domain
            ("metrics", "metrics/metrics"),
        ] {
            assert_eq!(path(name).as_deref(), Ok(expected), "{name}");
        }
        for name in ["", "nobody", "rag/0", "rag-embed/x", "rag-embed/-1", "/"] {
            let failure = path(name).expect_err(name);
            assert!(failure.text().contains("rag-embed"), "{}", failure.text());
        }
        for name in ["rag-embed", "rag-embed/3", "rag", "knowledge", "metrics"] {
            let target = Target::of(&list, name).expect(name);
            assert_eq!(Target::of_subject(&list, &target.subject(&list)), Some(target), "{name}");
        }
        let strange = Subject::Process { domain: "rag".to_owned(), process: "nobody".to_owned() };
        assert_eq!(Target::of_subject(&list, &strange), None);
        let target = Target::of(&list, "rag-embed").expect("a process");
        assert!(target.holds("knowledge/rag/rag-embed/0"));
        assert!(!target.holds("knowledge/rag/rag-embed-more/0"));
    }
}
