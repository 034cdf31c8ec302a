//! Requests and replies of gateway/chat, rag/index and rag/embed.

use serde::{Deserialize, Serialize};

/// Payload of gateway/chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The question, in words.
    pub question: String,
    /// Only this collection (indexed tree); all of the tenant's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
}

/// How an answer came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatMode {
    /// Read from the code graph.
    Graph,
    /// Verbatim lines of the best passages.
    Extractive,
    /// Written by a model from numbered passages.
    Llm,
    /// No evidence was found; the answer says so.
    Abstain,
}

/// Lines of a file that an answer rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Citation {
    /// Path below the root of its collection, with `/`.
    pub path: String,
    /// First line, from 1.
    pub start: u32,
    /// Last line, inclusive.
    pub end: u32,
    /// The indexed tree.
    pub collection: String,
    /// Hash of the file's content when it was indexed, lowercase hex of SHA-256.
    pub sha256: String,
    /// The cited lines.
    pub text: String,
}

/// Tokens and money of one message, as far as known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read by the model.
    pub input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
    /// Whether the provider did not say and the figures are estimates.
    pub estimated: bool,
}

/// Result of gateway/chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatReply {
    /// The answer, with citations as `[n]`, n counting from 1.
    pub answer: String,
    /// How it came about.
    pub mode: ChatMode,
    /// What it rests on; empty only when it abstains.
    pub citations: Vec<Citation>,
    /// Set when a part was worse than it could be, such as local embeddings instead of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// Model that was served, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it cost.
    #[serde(default)]
    pub usage: Usage,
}

/// Payload of rag/index: look at a tree and send on what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRequest {
    /// Name under which the tree is known.
    pub collection: String,
    /// Absolute path on the worker's machine, below an allowed root.
    pub root: String,
}

/// Result of rag/index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexReply {
    /// Files seen.
    pub files: u64,
    /// Files that are new or changed; each is in one of the batches sent.
    pub changed: u64,
    /// Files that are gone; their rows were removed.
    pub removed: u64,
    /// Files passed over, with why in the log.
    pub skipped: u64,
    /// Messages sent to rag/embed and kg/build.
    pub batches: u64,
}

/// Payload of rag/embed: read, chunk, index and embed these files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// The indexed tree.
    pub collection: String,
    /// Its root on the worker's machine.
    pub root: String,
    /// Paths below the root; empty means only: embed what is still pending.
    pub paths: Vec<String>,
}

/// Result of rag/embed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedReply {
    /// Files indexed.
    pub files: u64,
    /// Chunks written.
    pub chunks: u64,
    /// Vectors made, without those from the cache.
    pub embedded: u64,
    /// Name of the embedder.
    pub embedder: String,
    /// Whether it is the local one that needs no model.
    pub degraded: bool,
    /// What it cost.
    #[serde(default)]
    pub usage: Usage,
}
