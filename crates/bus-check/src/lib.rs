//! Checks of the bus under faults: histories are recorded, judged by one checker, and its model is explored exhaustively.

mod actor;
mod chance;
mod checker;
mod claim_model;
mod claim_model_calls;
mod explore;
mod history;
mod journal;
mod proxy;
mod recorder;
mod rows;
mod scene;
mod storm;

pub use actor::{
    ActorSettings, Fault, Handling, How, KeeperSettings, Point, ProducerSettings, ROUTE, Role, WorkerSettings,
    run as run_actor,
};
pub use chance::Chance;
pub use checker::{Harm, Invariant, Report, Rest, Violation, check};
pub use claim_model::{ClaimModel, Defect, Step, World};
pub use claim_model_calls::{CallDefect, CallModel, CallStep, CallWorld};
pub use explore::{Counterexample, Explored, Model, explore};
pub use history::{Accepted, Answer, Call, Ending, Held, Operation, Outcome, Sent, Taken};
pub use journal::{Journal, now_us, read as read_journal};
pub use proxy::{Cut, Direction, Hints, Proxy, Trigger};
pub use recorder::{Broken, RecordedBus, completing, enqueue, enqueued, still};
pub use rows::{AgentRow, AttemptRow, EventRow, LimitRow, MessageRow, Rows};
pub use scene::{Client, Death, Scene, Start};
pub use storm::{StormSettings, Tally, storm};
