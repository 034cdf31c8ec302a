//! What a process is told besides the list that the fleet must know too: where it listens and how much it does at once.
//!
//! The places and their order are those of the processes: `COGO_<NAME>_<KEY>`, then `COGO_<KEY>`, then
//! `<COGO_CONFIG_DIR or deploy/config>/<name>.toml`. Whatever is wrong there beside a port is left to the process, which
//! refuses it by name.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    failure::{Failure, about_file},
    fleet::Process,
};

/// Where settings of processes are unless `COGO_CONFIG_DIR` says otherwise.
const DIRECTORY: &str = "deploy/config";
/// The one process whose port has a name of its own as well.
const OTHER_NAMES_OF_PORT: [(&str, &str, &str); 1] = [("metrics-server", "metrics_port", "METRICS_PORT")];

/// Settings of one process as far as they were set.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnSettings {
    name: String,
    /// The file and what stands in it; none if there is none that can be read.
    file: Option<(PathBuf, toml::Table)>,
}

impl OwnSettings {
    /// Those of a process of the list.
    pub(crate) fn of(process: &Process) -> Result<Self, Failure> {
        let directory = env::var_os("COGO_CONFIG_DIR").map_or_else(|| PathBuf::from(DIRECTORY), PathBuf::from);
        Self::read(process, &directory)
    }

    fn read(process: &Process, directory: &Path) -> Result<Self, Failure> {
        // the program's settings are named after the program, whatever the list calls it
        let name = process.binary.strip_prefix("cogo-").unwrap_or(&process.name).to_owned();
        let path = directory.join(format!("{name}.toml"));
        let file = match fs::read_to_string(&path) {
            Ok(text) => text.parse().ok().map(|table| (path, table)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(about_file("read", &path)(error)),
        };
        Ok(Self { name, file })
    }

    /// The variable that sets a key for this process alone and wins over everything.
    pub(crate) fn own_variable(&self, key: &str) -> String {
        format!("COGO_{}_{}", self.name.replace('-', "_"), key).to_uppercase()
    }

    /// The port that it was told to listen on; none: the one of the list.
    pub(crate) fn port(&self) -> Result<Option<u16>, Failure> {
        self.port_in(&of_process)
    }

    fn port_in(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<u16>, Failure> {
        if let Some(port) = self.value("port", "COGO_PORT", environment) {
            return port.parsed().map(Some);
        }
        let other = OTHER_NAMES_OF_PORT.iter().find(|(name, ..)| *name == self.name);
        let found = other.and_then(|(_, key, variable)| self.value(key, variable, environment));
        found.map(Value::parsed).transpose()
    }

    /// How many messages an instance works on at once, if that was set.
    pub(crate) fn concurrency(&self) -> Option<u32> {
        self.concurrency_in(&of_process)
    }

    fn concurrency_in(&self, environment: &dyn Fn(&str) -> Option<String>) -> Option<u32> {
        let value = self.value("concurrency", "COGO_CONCURRENCY", environment)?;
        value.parsed().ok().filter(|concurrency| *concurrency > 0)
    }

    fn value(&self, key: &str, variable: &str, environment: &dyn Fn(&str) -> Option<String>) -> Option<Value> {
        for name in [self.own_variable(key), variable.to_owned()] {
            if let Some(text) = environment(&name) {
                return Some(Value { text, origin: name });
            }
        }
        let (path, table) = self.file.as_ref()?;
        let text = match table.get(key)? {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(Value { text, origin: format!("{key} in {}", path.display()) })
    }
}

/// A value and where it stands.
struct Value {
    text: String,
    origin: String,
}

impl Value {
    fn parsed<T: std::str::FromStr>(self) -> Result<T, Failure> {
        let Self { text, origin } = self;
        text.trim().parse().map_err(|_| Failure::failed(format!("{origin} is {text:?}, which is no such number")))
    }
}

fn of_process(name: &str) -> Option<String> {
    env::var_os(name)?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::ProcessList;

    fn process(name: &str, binary: &str) -> Process {
        let text =
            format!("[[process]]\nname = \"{name}\"\nbinary = \"{binary}\"\nport = 1\nrestart = \"permanent\"\n");
        ProcessList::parse(&text).expect("a good list").processes.remove(0)
    }

    fn check(name: &str, binary: &str, file: &str, environment: &[(&str, &str)], expected: Option<u16>) {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("rag-embed.toml"), file).expect("a file");
        fs::write(directory.path().join("metrics-server.toml"), file).expect("a file");
        let settings = OwnSettings::read(&process(name, binary), directory.path()).expect("readable");
        let told = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(settings.port_in(&told), Ok(expected), "{file} {environment:?}");
    }

    #[test]
    fn a_port_is_found_where_the_process_would_find_it() {
        let embed = |file: &str, environment: &[(&str, &str)], expected: Option<u16>| {
            check("rag-embed", "cogo-rag-embed", file, environment, expected);
        };
        embed("", &[], None);
        embed("port = 4711", &[], Some(4711));
        embed("port = 4711", &[("COGO_PORT", "4712")], Some(4712));
        embed("port = 4711", &[("COGO_PORT", "4712"), ("COGO_RAG_EMBED_PORT", "4713")], Some(4713));
        embed("metrics_port = 4711", &[("METRICS_PORT", "4712")], None);
        check("second-embed", "cogo-rag-embed", "port = 4711", &[], Some(4711));
        check("metrics-server", "cogo-metrics-server", "metrics_port = 4711", &[], Some(4711));
        check("metrics-server", "cogo-metrics-server", "", &[("METRICS_PORT", "4712")], Some(4712));
        check("metrics-server", "cogo-metrics-server", "port = 4711", &[("METRICS_PORT", "4712")], Some(4711));
        check("rag-embed", "stand-in", "port = 4711", &[], Some(4711));
        check("other", "stand-in", "port = 4711", &[], None);
    }

    #[test]
    fn a_port_that_is_none_is_refused_with_its_place() {
        let settings = OwnSettings { name: "rag-embed".to_owned(), file: None };
        let refused =
            settings.port_in(&|name| (name == "COGO_PORT").then(|| "http".to_owned())).expect_err("no number");
        assert!(refused.text().contains("COGO_PORT is \"http\""), "{}", refused.text());
    }

    #[test]
    fn what_an_instance_does_at_once_is_known_if_it_was_set() {
        let settings = OwnSettings { name: "rag-embed".to_owned(), file: None };
        let told = |value: &'static str| {
            settings.concurrency_in(&move |name| (name == "COGO_RAG_EMBED_CONCURRENCY").then(|| value.to_owned()))
        };
        assert_eq!((told("3"), told("0"), told("many")), (Some(3), None, None));
        assert_eq!(settings.concurrency_in(&|_| None), None);
    }
}
