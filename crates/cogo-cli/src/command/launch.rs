//! `cogo launch`: what a child of `cogo up` is in its first moments.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use clap::Args;
#[cfg(target_os = "linux")]
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::failure::{Failure, Kind};

/// Become a program that is told to stop when its parent dies.
#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// Process number of the parent.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl Launch {
    /// Returns only when it did not work.
    pub(crate) fn run(self) -> Result<(), Failure> {
        // the wish survives exec, and the processes of the fleet stop in good order on SIGTERM
        #[cfg(target_os = "linux")]
        set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(|error| Failure::failed("Could not be tied to the parent").cause(error.to_string()))?;
        if std::os::unix::process::parent_id() != self.parent {
            return Err(Failure::new(Kind::Interrupted, "The parent is gone already"));
        }
        let [program, arguments @ ..] = self.program.as_slice() else {
            return Err(Failure::new(Kind::Usage, "No program is named"));
        };
        let error = Command::new(program).args(arguments).exec();
        Err(Failure::failed(format!("Could not run {}", program.to_string_lossy())).because(&error))
    }
}
