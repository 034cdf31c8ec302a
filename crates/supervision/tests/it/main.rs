//! Supervision against OTP, against its known traps, and with real tasks and processes.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod many;
mod otp;
mod processes;
mod rules;
mod schedule;
mod tasks;
mod traps;
mod waiting;
mod world;
