//! The bus against a real Postgres, a database for each test.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod artifacts;
mod awaiting_in_order;
mod broadcasts;
mod by_hand;
mod claiming;
mod close_together;
mod dead_letters;
mod deferring;
mod documented;
mod ending;
mod even_arrays;
mod extending;
mod failing_in_batches;
mod fairness;
mod foreign_workers;
mod found_by_the_model;
mod healing;
mod history;
mod in_one_order;
mod joins;
mod keys;
mod limits;
mod locked_rows;
mod model;
mod partials;
mod plain_batches;
mod reading;
mod requests;
mod rest;
mod retention;
mod retention_looks;
mod schedules;
mod schedules_apart;
mod schema;
mod sending;
mod service_role;
mod stats;
mod steering;
mod support;
mod tasks;
mod unreadable;
mod unsettled;
mod wakeups;
mod words;
