//! One instance of a process: what is started, with which environment, port and log.

use std::{io, net::TcpListener, path::PathBuf, process::Stdio, sync::Arc};

use cogo_contracts::exit_code::SUPERSEDED;
use cogo_supervision::{ProcessWork, Work};
use tokio::process::Command;

use crate::fleet::{Home, Process, Record, state::ProcessState};

/// What the instances of one process have in common.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    pub(crate) process: Process,
    /// Where it stands in the tree.
    pub(crate) path: String,
    pub(crate) program: PathBuf,
    /// The port of its first instance, as its settings or the list have it; the others take free ones.
    pub(crate) port: u16,
    /// The slot of its first instance.
    pub(crate) first_slot: u32,
    /// The variable that sets its port and wins over its other settings.
    pub(crate) port_variable: String,
    /// Set for the process, beside what this process has.
    pub(crate) environment: Arc<[(&'static str, String)]>,
    pub(crate) home: Home,
    pub(crate) record: Record,
}

impl Launcher {
    /// The name of an instance in `cogo status` and of its log: the first one has that of the process.
    pub(crate) fn name(&self, slot: u32) -> String {
        let name = &self.process.name;
        if slot == self.first_slot { name.clone() } else { format!("{name}@{slot}") }
    }

    /// What the state of the fleet says of an instance before it runs.
    pub(crate) fn before_start(&self, slot: u32) -> ProcessState {
        let name = self.name(slot);
        ProcessState {
            path: format!("{}/{slot}", self.path),
            port: if slot == self.first_slot { self.port } else { 0 },
            log: self.home.log(&name),
            program: self.program.clone(),
            running: None,
            restarts: 0,
            last_end: None,
            drained: false,
            suspended: false,
            name,
        }
    }

    /// What the tree runs for an instance.
    pub(crate) fn work(&self, slot: u32) -> Work {
        let launcher = self.clone();
        let process = ProcessWork::new(move || launcher.command(slot));
        Work::process(process.final_code(SUPERSEDED, "superseded: another process owns its slot"))
    }

    /// The child is first this program, which makes sure that it never outlives its parent and then becomes the other.
    fn command(&self, slot: u32) -> io::Result<Command> {
        let name = self.name(slot);
        let port = if slot == self.first_slot { self.port } else { free_port()? };
        self.record.change_process(&name, |process| process.port = port);
        let log = self.home.open_log(&name).map_err(|failure| io::Error::other(failure.text()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["launch", "--parent", &std::process::id().to_string(), "--"])
            .arg(&self.program)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // what it was told of a port is its first instance's; without the variable all would try to listen there
            .env("COGO_PORT", port.to_string())
            .env(&self.port_variable, port.to_string())
            .env("COGO_AGENT_SLOT", slot.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// A port that nobody has at this moment; should somebody take it, the instance ends and is started on another.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
