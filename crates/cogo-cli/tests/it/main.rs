//! The built binary against a real Postgres and real processes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as the tests themselves do")]

mod dead_letters;
mod fleet;
mod fleet_refusals;
mod front_door;
mod schema;
mod sending;
mod support;
mod tracing_tasks;
mod usage;
