//! Tests of the code graph on a real Postgres.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod fixtures;
mod incremental;
mod queries;
mod schema;
mod support;
