//! The SQL of the tables `orch_*`, and what is read from the tables of others.

mod decisions;
mod outcomes;
mod targets;

pub use decisions::{DecisionRow, RecentDecision, decision_of, forget_decisions, recent_decisions};
pub(crate) use outcomes::{
    advance_progress, events_through, has_news, insert_outcomes, lock_progress, save_stats, stats_of,
};
pub use targets::known_intents;
pub(crate) use targets::{coverage, load_snapshot};
