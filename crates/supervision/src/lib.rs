//! Keeps things alive: supervision trees that mean what Erlang/OTP means, for tasks and for processes.
//!
//! [`core`] is the whole of the rules and does no I/O: it is told what happened and when, and says what to do.
//! [`Supervisor`] drives it: children are async functions or operating system processes, in any mixture.
//!
//! A specification owns its children, so a tree cannot contain itself: cycles are impossible by construction.

pub mod autoscale;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod clock;
pub mod core;
mod driver;
mod event;
mod exit;
pub mod pool;
pub mod probe;
mod seeded;
mod snapshot;
mod spec;
mod waiting_room;

pub use driver::{Handle, Options, Outcome, ProcessWork, Spawned, Supervisor, TaskContext, TaskWork, Work};
pub use event::{End, Event, Happened};
pub use exit::Exit;
pub use snapshot::{LastExit, Node, NodeState};
pub use spec::{AutoShutdown, Backoff, ChildSpec, Error, GroupSpec, Kind, Restart, Shutdown, StopOrder, Strategy};
