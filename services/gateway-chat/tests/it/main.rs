//! Answers against a real Postgres with a small indexed tree.

mod graph;
mod live;
mod model;
mod process;
mod retrieval;
mod support;
