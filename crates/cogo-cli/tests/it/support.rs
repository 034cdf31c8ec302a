//! Runs the built `cogo` in a directory of its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, Failure};
use cogo_contracts::{Environment, Location, Route};
use cogo_registry_core::Registration;
pub(crate) use cogo_test_support::free_port;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

/// Port of the stand-in process before the offset.
pub(crate) const STAND_IN_PORT: u16 = 20_000;
/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a process that no test starts joins the registry with.
pub(crate) fn registration(domain: &str, name: &str, slot: u32) -> Registration {
    let location = Location {
        environment: Environment::Host,
        host: "testhost".to_owned(),
        region: None,
        cpus: 1,
        memory_bytes: 1,
        pid: 42,
    };
    Registration::new(domain, name, slot, "1.2.3".parse().unwrap(), location).unwrap()
}

/// A `cogo` with a data directory of its own.
pub(crate) struct Cogo {
    directory: tempfile::TempDir,
    database_url: Option<String>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn problem(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Cogo {
    pub(crate) fn on(database_url: &str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), database_url: Some(database_url.to_owned()) }
    }

    pub(crate) fn without_database() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), database_url: None }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("fleet")
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A list with the stand-in, or any other program on the path, as its only process.
    pub(crate) fn process_list(&self, binary: &str) -> String {
        let text = format!(
            "[[process]]\nname = \"stand-in\"\nbinary = \"{binary}\"\nport = {STAND_IN_PORT}\nrestart = \"permanent\"\n"
        );
        self.file("processes.toml", &text).to_string_lossy().into_owned()
    }

    /// A list of processes `(name, program, further keys)`, each on a free port, with what else shall stand in it.
    pub(crate) fn list_of(&self, processes: &[(&str, &str, &str)], more: &str) -> String {
        let mut text = format!("{more}\n");
        for (name, binary, keys) in processes {
            let port = free_port();
            let entry = format!("name = \"{name}\"\nbinary = \"{binary}\"\nport = {port}\nrestart = \"permanent\"\n");
            text.push_str(&format!("[[process]]\n{entry}{keys}\n"));
        }
        self.file("processes.toml", &text).to_string_lossy().into_owned()
    }

    /// A program that notes each of its starts in a file, which is answered, and then does what the script says.
    pub(crate) fn program(&self, name: &str, script: &str) -> PathBuf {
        let starts = self.directory.path().join(format!("{name}.starts"));
        let program = self.file(name, &format!("#!/bin/sh\necho start >> {}\n{script}\n", starts.display()));
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        starts
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let binary = Path::new(env!("CARGO_BIN_EXE_cogo"));
        let examples = binary.parent().unwrap().join("examples");
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path =
            format!("{}:{}:{}", examples.display(), self.directory.path().display(), inherited.to_string_lossy());
        let mut command = Command::new(binary);
        for name in [
            "DATABASE_URL",
            "COGO_DATA_DIR",
            "COGO_PORT_OFFSET",
            "COGO_URL",
            "COGO_API_KEY",
            "COGO_AGENT_SLOT",
            "COLUMNS",
        ] {
            command.env_remove(name);
        }
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        command.env("PATH", path).args(arguments).arg("--data-dir").arg(self.data_dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).output().await.unwrap())
    }

    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        ended(child.wait_with_output().await.unwrap())
    }
}

impl Drop for Cogo {
    /// A test that fails must not leave a fleet behind.
    fn drop(&mut self) {
        let mut down = std::process::Command::new(env!("CARGO_BIN_EXE_cogo"));
        let _ = down.args(["down", "--data-dir"]).arg(self.data_dir()).output();
    }
}

pub(crate) fn ended(output: std::process::Output) -> Ended {
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// An offset that puts the stand-in on a free port.
pub(crate) fn free_offset() -> u16 {
    free_port() - STAND_IN_PORT
}

/// Looks until it holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let looked = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(looked.await.is_ok(), "it never came true that {what}");
}

/// Takes the next message of a route, as soon as there is one.
pub(crate) async fn claim_next(bus: &Bus, route: &Route) -> Claimed {
    let request =
        ClaimRequest { route, holder: "test/0#1", instance: None, max_messages: 1, lease: Duration::from_secs(30) };
    let taken = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(claimed) = bus.claim(&request).await.unwrap().pop() {
                return claimed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    taken.await.expect("a message arrives")
}

pub(crate) async fn complete(bus: &Bus, claimed: &Claimed, result: Value) {
    let completion = Completion { result: Some(result), ..Completion::default() };
    assert!(bus.complete(&claimed.fence(), "test/0#1", &completion).await.unwrap());
}

pub(crate) async fn give_up(bus: &Bus, claimed: &Claimed, reason: &str) {
    let failure = Failure { reason: reason.to_owned(), retriable: false, retry_after: None };
    bus.fail(&claimed.fence(), "test/0#1", &failure).await.unwrap().unwrap();
}
