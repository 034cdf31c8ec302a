//! Stamps decided work with its assignment (agent, model, budget, ttl) and sends it to its target.

mod agents;
mod dispatch;
mod handler;
mod service;
mod settings;
mod stamp;

pub use agents::{AgentSort, Agents, Known, agent_of};
pub use dispatch::{Dispatch, Origin, dispatch};
pub use handler::Dispatcher;
pub use service::ExecutorDispatcher;
pub use settings::Settings;
pub use stamp::{Refusal, stamp};
