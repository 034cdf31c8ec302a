//! Wire types of the bus: parsed once at the edge, trusted afterwards. No I/O.

mod agent;
mod assignment;
mod code_graph;
mod decision;
pub mod exit_code;
mod knowledge;
mod message;
mod problem;
mod routing;
mod sandbox;
mod schema;
mod task;

pub use agent::{AgentId, AgentState, Endpoint, Environment, Location};
pub use assignment::{Assignment, Budget};
pub use code_graph::{BuildReply, BuildRequest};
pub use decision::{Candidate, DecideReply, DecideRequest, DispatchReply, DispatchRequest, Scores};
pub use knowledge::{
    ChatMode, ChatReply, ChatRequest, Citation, EmbedReply, EmbedRequest, IndexReply, IndexRequest, Usage,
};
pub use message::{DeadLetter, MessageStatus, NewMessage};
pub use problem::Problem;
pub use routing::{Invalid, Route, Tenant, routes};
pub use sandbox::{Isolation, SandboxEvent, SandboxReply, SandboxRequest};
pub use schema::{Compatibility, Direction, SchemaSubject};
pub use task::{Step, Task, TaskStatus};
