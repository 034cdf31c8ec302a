//! The bus against a real Postgres, a database for each test.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod claiming;
mod dead_letters;
mod ending;
mod healing;
mod model;
mod schema;
mod sending;
mod support;
mod tasks;
mod wakeups;
