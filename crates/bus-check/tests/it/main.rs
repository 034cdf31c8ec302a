//! The bus under faults, judged by the checker, and its model, visited exhaustively.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod claim_model;
mod claim_model_calls;
mod clocks;
mod conflicts;
mod connections;
mod disk;
mod herds;
mod hints;
mod migrations;
mod payloads;
mod postgres;
mod producers;
mod races;
mod sabotage;
mod slots;
mod storm;
mod support;
mod workers;
