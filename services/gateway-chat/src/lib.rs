//! Answers questions: structural ones from the code graph, others from passages, with citations that exist.

mod abstain;
mod chat;
mod extractive;
mod graph;
mod guarded;
mod indexed;
mod intent;
mod live;
mod markers;
mod patterns;
mod places;
mod prompt;
mod reply;
mod search;
mod service;
mod settings;
mod words;
mod writing;
mod written;

pub use chat::{Asked, Chat, MAX_QUESTION_CHARS, Parts};
pub use live::{Live, router};
pub use search::Search;
pub use service::GatewayChat;
pub use settings::{Settings, WritingLimits};
pub use writing::{Guarded, Writers, Writing};
