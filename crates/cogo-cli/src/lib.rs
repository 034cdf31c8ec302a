//! The command line: starts, stops and shows the fleet, sends work to it and follows what becomes of it.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found,
//! 4 conflict, 5 not allowed, 6 timeout, 7 not available, 130 interrupted.

mod arguments;
mod attempts;
mod command;
mod context;
mod database_failure;
mod failure;
mod fleet;
mod format;
mod front_door;
mod output;
mod parent;
mod percentile;
mod proc_files;
mod run;
mod task_waiter;
mod waterfall;

pub use arguments::definition;
pub use run::run;
