//! The built binary against a real Postgres and real processes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as the tests themselves do")]

mod bad_lists;
mod benches;
mod cancelling;
mod chaos;
mod children;
mod configuring;
mod dead_letters;
mod drained;
mod escalation;
mod fleet;
mod fleet_refusals;
mod front_door;
mod guarded;
mod keys;
mod pause;
mod ports;
mod routes;
mod schedules;
mod schema;
mod schemas;
mod sending;
mod standing_orders;
mod steering;
mod support;
mod tracing_tasks;
mod tree;
mod usage;
mod worker_role;
