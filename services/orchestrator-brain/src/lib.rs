//! Decides where work goes: Sense, Diagnose, Plan, Allocate, then Observe, Evaluate, Update.
//!
//! One decision is a pure function of the request, a snapshot of what is known, the policy and the decision's id:
//! `sense` loads the snapshot, `plan` reads the request and selects candidates with their limits, `diagnose` scores
//! them (`scorers`), `allocate` draws. `handler` sends the result on and `store` records it in the transaction of the
//! message's completion. Behind it, `observe` reads how dispatched work ended, `evaluate` turns that into outcomes and
//! `update` learns from each of them once.

mod allocate;
mod brain;
mod decision;
mod diagnose;
mod evaluate;
mod handler;
mod http;
mod observe;
mod plan;
mod policy;
mod scorers;
mod sense;
mod service;
mod settings;
mod store;
mod update;

pub use allocate::{Allocation, allocate, draws};
pub use brain::{Brain, DecideError};
pub use decision::{Decision, Provenance, RecordedCandidate, replay};
pub use handler::Decider;
pub use http::routes;
pub use observe::{Lookout, observe};
pub use plan::{Limits, Refusal};
pub use policy::{Policy, PolicyError, Weights};
pub use sense::{Snapshot, Target};
pub use service::OrchestratorBrain;
pub use settings::Settings;
pub use store::{DecisionRow, RecentDecision, decision_of, forget_decisions, known_intents, recent_decisions};
pub use update::Stats;
