//! The fleet of `cogo bench scale`: a real `cogo up` with one pool of real workers, in a directory of its own.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::process::{Child, Command};

use crate::{
    context::Context,
    failure::{Failure, about_file},
    fleet::{Home, Phase, last_words},
};

/// The process whose number is scaled.
pub(crate) const PROCESS: &str = "sandbox-manager";
const LOG: &str = "up";
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Its processes have 12 s each to stop.
const GONE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What would tell the fleet of the bench something that is meant for another.
const FOREIGN: [&str; 5] = ["COGO_DATA_DIR", "COGO_PORT_OFFSET", "COGO_AGENT_SLOT", "COGO_PORT", "COGO_CONCURRENCY"];

/// The size of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    pub(crate) max: u32,
    /// Messages that one instance works on at once.
    pub(crate) concurrency: u16,
}

/// A running `cogo up`; dropped, it ends and its processes with it.
pub(crate) struct PoolFleet {
    up: Child,
    home: Home,
    _directory: Directory,
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // what cannot be removed is small and says by its name what it is
        let _ = fs::remove_dir_all(&self.0);
        // made for this alone if there is nothing else in it
        if let Some(parent) = self.0.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

impl PoolFleet {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(context: &Context, database_url: &str, size: Size) -> Result<Self, Failure> {
        let path = context.home.path().join(format!("bench-scale-{}", std::process::id()));
        let directory = Directory(path.clone());
        let home = Home::new(&path);
        home.prepare()?;
        let (list, settings) = (path.join("processes.toml"), path.join(format!("{PROCESS}.toml")));
        fs::write(&list, list_of_processes(size)?).map_err(about_file("write", &list))?;
        fs::write(&settings, settings_of_worker(size)).map_err(about_file("write", &settings))?;
        let log = home.fresh_log(LOG)?;
        let cogo = std::env::current_exe()?;
        // by way of `cogo launch`, so that it does not outlive this command
        let mut command = Command::new(&cogo);
        command.args(["launch", "--parent", &std::process::id().to_string(), "--"]).arg(&cogo);
        command.args(["up", "--json", "--processes"]).arg(&list).arg("--data-dir").arg(&path);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.env("DATABASE_URL", database_url).env("COGO_CONFIG_DIR", &path);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut fleet = Self { up: command.spawn()?, home, _directory: directory };
        fleet.wait_until_ready().await?;
        Ok(fleet)
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if self.home.read_state()?.is_some_and(|state| state.phase == Phase::Ready) {
                return Ok(());
            }
            if self.up.try_wait()?.is_some() || Instant::now() >= deadline {
                return Err(Failure::failed("The fleet of the measurement did not get ready")
                    .cause(last_words(&self.home.log_tail(LOG))));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let pid = self.up.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // an error means that it ended just now
            let _ = kill_process(pid, Signal::TERM);
        }
        match tokio::time::timeout(GONE_WITHIN, self.up.wait()).await {
            Ok(Ok(ended)) if ended.success() => Ok(()),
            Ok(_) => {
                Err(Failure::failed("The fleet of the measurement ended badly")
                    .cause(last_words(&self.home.log_tail(LOG))))
            }
            Err(_elapsed) => Err(Failure::timeout("The fleet of the measurement does not stop")),
        }
    }
}

/// The pool, and the process that looks after leases and dead agents.
fn list_of_processes(size: Size) -> Result<String, Failure> {
    // both are open at once, so that they are two
    let listeners = [free_port()?, free_port()?];
    let [worker, reclaimer] = [&listeners[0], &listeners[1]].map(|listener| listener.local_addr());
    let (worker, reclaimer) = (worker?.port(), reclaimer?.port());
    let max = size.max;
    Ok(format!(
        "[[process]]\nname = \"bus-reclaimer\"\nbinary = \"cogo-bus-reclaimer\"\nport = {reclaimer}\n\
         restart = \"permanent\"\n\n\
         [[process]]\nname = \"{PROCESS}\"\nbinary = \"cogo-{PROCESS}\"\nport = {worker}\nrestart = \"permanent\"\n\
         route = {{ service = \"sandbox\", role = \"run\", shard = 0 }}\npool = {{ min = 1, max = {max} }}\n"
    ))
}

fn free_port() -> Result<TcpListener, Failure> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?)
}

/// Commands run in the worker itself; they come from nobody but the bench.
fn settings_of_worker(size: Size) -> String {
    let concurrency = size.concurrency;
    format!("allow_local = true\nlocal_slots = {concurrency}\nconcurrency = {concurrency}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{OwnSettings, ProcessList};

    #[test]
    fn the_list_of_the_measurement_can_be_run() {
        let text = list_of_processes(Size { max: 4, concurrency: 3 }).expect("two ports are free");
        let list = ProcessList::parse(&text).expect("a good list");
        let pool = list.process(PROCESS).expect("it is listed").pool();
        assert_eq!((pool.min, pool.max), (1, 4));
        let route = list.process(PROCESS).and_then(|process| process.route.as_ref()).expect("it claims");
        let known = cogo_contracts::routes::SANDBOX;
        assert_eq!((route.service.as_str(), route.role.as_str()), (known.service(), known.role()));
        assert!(OwnSettings::of(list.process(PROCESS).expect("it is listed")).is_ok());
    }
}
