//! The message bus over `public.agent_messages`: send, claim, end, heal, follow.

mod bus;
mod claim;
mod dead_letters;
mod error;
mod event;
mod stats;
mod task;
mod wakeups;

pub use bus::{Bus, Enqueued};
pub use claim::{ClaimRequest, Claimed, Completion, Failure, Fence, Settled};
pub use error::Error;
pub use event::{Event, NewEvent, events_of_task, execution_events_after, record_event};
pub use stats::{
    COUNT_CAP, Capped, FailureGroup, Percentiles, RecentMessage, RouteStats, SAMPLE_CAP, StatusCounts, StatusTotal,
    Summary, failures, recent_events, recent_messages, summary, totals,
};
pub use wakeups::{Wake, WakeUps};
