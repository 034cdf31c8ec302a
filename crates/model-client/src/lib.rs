//! Chat and embedding models over HTTP behind one trait, with token and cost accounting that is enforced while a reply streams.

mod budget;
mod chat;
mod embeddings;
mod error;
mod http;
mod openai;
pub mod scripted;
mod settings;
mod sse;
mod stream;
mod wire;

pub use budget::estimate_tokens;
pub use chat::{ChatModel, ChatRequest, Completion, FinishReason, Limits, Message, Role, Usage};
pub use error::{Error, Phase};
pub use http::http_client;
pub use openai::OpenAi;
pub use settings::{OutputCapField, Prices, Secret, Settings};
pub use stream::{ChatEvent, ChatStream};
