//! The registry: who is in the fleet, how it is, and a process's own place in it.

mod agents;
mod beating;
mod heartbeat;
mod link;
mod location;
mod registration;
mod registry;
mod standing;
mod store;
mod usage;

pub use agents::Agent;
pub use heartbeat::{Ended, Heartbeat, HeartbeatSettings};
pub use location::detect_location;
pub use registration::{Invalid, Level, Registration};
pub use registry::{Error, Registry, SweepOutcome};
pub use standing::{Member, Membership, Standing, Vitals};
