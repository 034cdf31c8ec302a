//! The frame of every process: settings, telemetry, registration, probes, worker loops, chores, HTTP and an orderly end.

mod attempt;
mod chore;
mod command;
mod entry;
mod frame;
mod guard;
mod handler;
mod identity;
mod leases;
mod limits;
mod listen;
mod passing;
mod probes;
mod problem;
mod pulse;
mod roots;
mod settings;
mod settle;
mod shutdown;
mod worker;

pub use chore::{ChoreReport, ChoreResult};
pub use entry::main;
pub use frame::{Frame, Service};
pub use guard::{Foreign, expect_this_machine, is_json};
pub use handler::{Claim, Handler, HandlerError};
pub use problem::{ApiError, RequestBody};
pub use roots::{AllowedRoots, RootError};
pub use settings::{FrameSettings, NoSettings, Secret, SettingsError};
pub use shutdown::Stop;

#[cfg(test)]
mod tests;
