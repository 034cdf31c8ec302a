//! Whole fleets of real processes: the main job, crashes, bad input.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod bad_input;
mod children;
mod crashes;
mod main_job;
mod tree;
