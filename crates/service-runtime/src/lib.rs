//! The frame of every process: settings, telemetry, registration, probes, worker loops, chores, HTTP and an orderly end.

mod allocator;
mod attempt;
mod batch;
mod children;
mod chore;
mod claiming;
mod command;
mod deadline;
mod dependency;
mod entry;
mod frame;
mod gathered;
mod guard;
mod handler;
mod hands;
mod health;
mod identity;
mod leases;
mod limits;
mod listen;
mod live;
mod patience;
mod probes;
mod problem;
mod pulse;
mod record;
mod retry;
mod roots;
mod schema_check;
mod settings;
mod settle;
mod shutdown;
mod starting;
mod worker;

pub use batch::{BatchAttempt, BatchHandler, BatchItem, Batching};
pub use children::{
    Again, ChildAccess, ChildClient, ChildConnection, ChildEvent, ChildHandle, ChildIntroduction, ChildWorker,
    Children, ChildrenSettings, ConnectionSettings, Credential, Ended, FromChild, Hello, Input, NoAuthority,
    NotConnected, Order, Output, Seated, ToChild, ToParent, Trouble, TroubleKind, Trust, Unusable,
};
pub use chore::{ChoreReport, ChoreResult};
pub use dependency::{Dependencies, Dependency, DependencySettings, Reach, Unanswered};
pub use entry::{main, serve};
pub use frame::{Frame, Service};
pub use guard::{Foreign, expect_this_machine, is_json};
pub use handler::{Claim, Handler, HandlerError};
pub use problem::{ApiError, RequestBody};
pub use retry::{Backoff, Jitter, PANIC, Retry, RetryPolicy, UNANSWERED};
pub use roots::{AllowedRoots, RootError};
pub use settings::{FrameSettings, NoSettings, Secret, SettingsError};
pub use shutdown::Stop;

#[cfg(test)]
mod tests;
