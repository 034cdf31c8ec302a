//! `cogo guard`: ends a private Postgres whose owner is gone without having ended it, as after `kill -9`.

use std::{
    io::Write,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use clap::Args;
use cogo_pg_local::{Cluster, StopMode};
use tokio::io::AsyncReadExt;

use crate::failure::Failure;

/// How often it is tried: the owner may have been killed while the server started.
const TRIES: u32 = 100;
const TRY_EVERY: Duration = Duration::from_millis(200);

/// Wait until the other end of the standard input, which must begin with the name of a directory, is closed, then end and
/// remove the Postgres of that directory.
#[derive(Debug, Args)]
pub(crate) struct Guard {
    /// The directory, which is removed.
    directory: PathBuf,
}

impl Guard {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // the system closes the other end with its owner, however that ended
        let mut owners = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut owners).await;
        // nobody loses a directory by trying out what this is
        if owners != self.directory.as_os_str().as_bytes() {
            return Err(Failure::conflict(format!("Nobody owns {} through this command", self.directory.display()))
                .hint("Other commands start it for a Postgres of their own; it is not for people"));
        }
        for _ in 0..TRIES {
            // an owner that ended in good order has removed it
            if !self.directory.exists() {
                return Ok(());
            }
            remove(&self.directory).await;
            tokio::time::sleep(TRY_EVERY).await;
        }
        Err(Failure::failed(format!("{} could not be removed", self.directory.display())))
    }
}

/// What does not work now may work the next time.
async fn remove(directory: &Path) {
    match Cluster::attach(directory) {
        Ok(Some(cluster)) if cluster.stop(StopMode::Immediate).await.is_ok() => {
            // not always the directory that was asked for
            let _ = std::fs::remove_dir_all(cluster.directory());
        }
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => return,
    }
    let _ = std::fs::remove_dir_all(directory);
    // one that was made for this alone is empty now, any other one is not
    if let Some(parent) = directory.parent() {
        let _ = std::fs::remove_dir(parent);
    }
}

/// The watch over a private Postgres, in a process of its own. It ends with this value, once the directory is gone.
#[derive(Debug)]
pub(crate) struct PostgresGuard {
    process: Child,
}

impl PostgresGuard {
    /// Watches over a Postgres that is about to be started in this directory.
    pub(crate) fn over(directory: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("guard").arg(directory).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // what interrupts its owner at a terminal must not end it as well
        command.process_group(0);
        let mut process = command.spawn()?;
        if let Some(owners) = process.stdin.as_mut() {
            owners.write_all(directory.as_os_str().as_bytes())?;
        }
        Ok(Self { process })
    }
}

impl Drop for PostgresGuard {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // soon, since there is nothing left for it to do unless something went wrong
        let _ = self.process.wait();
    }
}
