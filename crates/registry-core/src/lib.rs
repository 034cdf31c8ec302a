//! The registry: who is in the fleet, how it is, and a process's own place in it.

mod agents;
mod beating;
mod breakers;
mod change;
mod config;
mod config_history;
mod config_watcher;
mod entry;
mod follower;
mod heartbeat;
mod key;
mod keys;
mod kv;
mod lifecycle;
mod link;
mod location;
mod orders;
mod pools;
mod query;
mod reading;
mod registration;
mod registry;
mod routing;
mod schemas;
mod seat;
mod selection;
mod snapshot;
mod standing;
mod store;
mod target;
mod token;
mod usage;
mod view;

pub use agents::Agent;
pub use breakers::{BreakerPhase, BreakerRecord, SharedBreaker, SharedBreakers};
pub use change::Change;
pub use config::{Proposal, Rollout, RolloutState};
pub use config_history::{NotTakenBack, RolloutRecord, WatcherAnswer};
pub use config_watcher::{ConfigWatcher, Configurable};
pub use entry::{AgentAddress, Entry};
pub use follower::Follower;
pub use heartbeat::{Ended, Heartbeat, HeartbeatSettings};
pub use key::{AgentKey, NoKey};
pub use keys::{KeyRecord, KeyRevoked};
pub use kv::{Held, Kv};
pub use lifecycle::{Stage, TRANSITIONS, Transition};
pub use location::detect_location;
pub use orders::{NewOrder, OrderedState, StandingOrder, StandingOrders, Subject};
pub use pools::{Decided, Ownership, PoolClaim, PoolState, Pools, ScalingDecision};
pub use query::Query;
pub use registration::{Invalid, Level, Registration};
pub use registry::{Error, Ordered, Registry, SweepOutcome};
pub use routing::{Destination, NoDestination, WhenGone};
pub use schemas::{
    Finding, Incompatible, NewSchema, NotASchema, NotChecked, RegisteredSchema, SchemaCatalog, SchemaDocument,
    SchemaError, SchemaFollower, SchemaRefusal, SchemaRegistry, SchemaVersion, SubjectSummary, Towards, Violation,
};
pub use seat::Seat;
pub use snapshot::{Gap, Snapshot};
pub use standing::{Heard, Member, Membership, Standing, Vitals};
pub use target::{NoTarget, Target};
pub use token::{Refused, TokenClaims, verify_token};
pub use view::{Answer, Stale, View, ViewSettings};
