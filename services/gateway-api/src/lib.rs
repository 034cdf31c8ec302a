//! The front door: takes questions and jobs in over HTTP, and lets callers follow them to their result.

mod access;
mod artifacts;
mod body;
mod database;
mod follow;
mod gateway;
mod intents;
mod origin;
mod partials;
mod problems;
mod service;
mod settings;
mod socket;
mod sse;
mod steps;
mod submission;
mod submit;
mod tasks;

pub use database::database_guard;
pub use gateway::{Gateway, Parts, router};
pub use service::GatewayApi;
pub use settings::Settings;
