//! Supervision against OTP, against its known traps, and with real tasks and processes.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod autoscale;
mod breaker;
mod bulkhead;
mod many;
mod otp;
mod parking;
mod pools;
mod probes;
mod processes;
mod queue_world;
mod rules;
mod schedule;
mod tasks;
mod traps;
mod waiting;
mod world;
