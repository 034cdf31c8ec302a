//! The control plane of sandbox workers: takes their connections, gives them commands, follows each to its one end.
//!
//! # The protocol of a worker
//! A worker opens a WebSocket on `/sandbox/worker?name=<name>` (with `Authorization: Bearer <worker_token>` where one
//! is configured) and speaks JSON in text frames, one [`ToManager`] or [`ToWorker`] each:
//! 1. It says `{"type":"hello","slots":4}` first: how many jobs it takes at once.
//! 2. It gets `{"type":"run","job":"<uuid>","request":{"command":["ls"],"limit_ms":1000,"stdin":"","isolation":"none"}}`.
//! 3. It answers `{"type":"event","job":"<uuid>","event":{..}}` with `{"event":"started"}`, any number of
//!    `{"event":"stdout","text":".."}` and `{"event":"stderr","text":".."}`, and exactly one of `{"event":"exited","code":0}`,
//!    `{"event":"timed_out"}` and `{"event":"failed","reason":".."}`.
//! 4. `{"type":"stop","job":"<uuid>"}` means: kill it now; a worker still ends it with `failed`.
//!
//! The manager pings every ten seconds and drops a worker that is silent for two pings; its jobs then end as failed. A
//! worker whose connection breaks kills what it runs. Output beyond [`OUTPUT_CAP`] bytes per stream is cut: a worker
//! sends a little more than that, so that the manager sees that something was cut, and then only drains the pipe.
//! [`worker::serve`] is such a worker over a pair of channels; an external one puts a WebSocket in between.

mod command;
mod guard;
mod handler;
mod http;
mod job;
mod manager;
mod protocol;
mod service;
mod settings;
mod socket;
mod text;
pub mod worker;
mod workers;

pub use http::router;
pub use manager::{Manager, Refusal};
pub use protocol::{OUTPUT_CAP, ToManager, ToWorker};
pub use service::SandboxManager;
pub use settings::Settings;
