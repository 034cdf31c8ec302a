//! Circuit breakers: stop calling what fails, find out carefully when it is well again, and tell the others.
//!
//! [`Core`] is the whole of the rules and does no I/O. [`Breaker`] is the handle that callers share.

mod change;
mod core;
mod handle;
mod settings;
mod shared;
mod window;

pub use change::{Cause, Change, Outcome, Phase, Refused};
pub use core::{Core, Ticket};
pub use handle::{Breaker, CallError, Permit};
pub use settings::{Invalid, Settings};
pub use shared::{Shared, SharedPhase};
