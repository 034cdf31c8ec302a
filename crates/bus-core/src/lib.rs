//! The message bus over `public.agent_messages`: send, claim, end, heal, follow.

mod artifact;
mod broadcast;
mod bus;
mod claim;
mod completing;
mod dead_letters;
mod deferral;
mod error;
mod event;
mod failing_in_batches;
mod finished;
mod jsonb;
mod line;
mod partial;
mod request;
mod rest;
mod schedule;
mod stats;
mod steering;
mod task;
mod tree_events;
mod wakeups;

pub use artifact::{Artifact, ArtifactDigest, ArtifactInfo, MAX_ARTIFACT_BYTES, NotADigest, StoredArtifact};
pub use broadcast::{Broadcast, BroadcastBatch, NewBroadcast, Position, StartAt, Subscription};
pub use bus::{Bus, Enqueued};
pub use claim::{ClaimRequest, Claimed, Completion, Failure, Fence, Settled};
pub use dead_letters::Replayed;
pub use error::Error;
pub use event::{Event, NewEvent, events_of_task, execution_events_after, record_event};
pub use finished::insert_finished;
pub use partial::{
    MAX_PARTIAL_BYTES, Partial, PartialClaim, PartialError, PartialFlusher, PartialPace, PartialPlace, PartialWriter,
};
pub use request::{Reply, RequestError};
pub use rest::{Overdue, Traffic, overdue, traffic};
pub use schedule::{Fired, InvalidSchedule, MissedRuns, NewSchedule, Schedule, ScheduleError};
pub use stats::{
    COUNT_CAP, Capped, FailureGroup, Load, Percentiles, RecentMessage, RouteStats, SAMPLE_CAP, Standing, StatusCounts,
    StatusTotal, Summary, failures, load, recent_events, recent_messages, standing, summary, totals,
};
pub use steering::{CountedBy, Limit, RouteSettings};
pub use task::{Attempt, Outcome};
pub use tree_events::{TreeCount, TreeEvents, tree_events_after};
pub use wakeups::{Wake, WakeUps};
