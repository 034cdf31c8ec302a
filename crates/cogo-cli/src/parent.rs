//! Processes that must not outlive the command that started them.

#[cfg(target_os = "linux")]
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::failure::{Failure, Kind};

/// Ends this process with its parent, whatever ends that.
///
/// # Errors
/// When it could be left behind.
pub(crate) fn end_with(parent: u32) -> Result<(), Failure> {
    // killed rather than told: it may be stopped when its parent dies, and a wish would wait for ever
    #[cfg(target_os = "linux")]
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::failed("Could not be tied to the parent").cause(error.to_string()))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(Failure::new(Kind::Interrupted, "The parent is gone already"));
    }
    Ok(())
}
