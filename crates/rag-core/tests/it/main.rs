//! Retrieval on a real Postgres.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod embedding;
mod incremental;
mod quality;
mod ranking;
mod search;
mod support;
