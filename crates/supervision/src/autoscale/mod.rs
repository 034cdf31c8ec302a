//! How many workers a pool should have, decided from what its queue shows; every decision says why.
//!
//! Pure: figures and the time go in, a [`Decision`] comes out. Four things speak for a number of workers:
//! arrivals (Little's law), the backlog and the age of the oldest (the formula of the Kubernetes horizontal pod
//! autoscaler, <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details>), and what
//! is being worked on. A forecast may raise the number but never lower it. The greatest counts, as far as bounds,
//! holding times, cool-downs and step limits let it.

mod candidates;
mod decision;
mod history;
mod holt;
mod scaler;
mod settings;

pub use decision::{Candidate, Decision, Inputs, Limit, Source};
pub use holt::Holt;
pub use scaler::Autoscaler;
pub use settings::{Invalid, Settings};

use std::time::Duration;

/// What is known of a pool and its queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When, by a clock that does not go back.
    pub at: Duration,
    /// The desired count that is in force.
    pub current: u32,
    /// Workers of it that are ready.
    pub ready: u32,
    /// Messages that wait.
    pub queued: u64,
    /// How long the oldest of them has waited.
    pub oldest_age: Duration,
    /// Messages being worked on.
    pub in_flight: u64,
    /// Messages that ended within `over`, up to now.
    pub ended: u64,
    /// The time that `ended` covers.
    pub over: Duration,
    /// Mean time of work on one message, if measured; otherwise it follows from Little's law.
    pub service_time: Option<Duration>,
}
