//! Knowledge from files: walking, chunking, indexing, hybrid search and answers made of verbatim lines.

mod chunk;
mod echo;
mod embed;
mod extract;
mod guarded;
mod language;
mod model_embedder;
mod search;
mod sentences;
mod store;
mod tokens;
mod walk;

pub use chunk::{Chunk, MAX_CHUNK_BYTES, MAX_CHUNK_LINES, chunk};
pub use embed::{EmbedError, Embedder, Embedding, HashEmbedder};
pub use extract::{Citation, Extract, extract};
pub use guarded::GuardedEmbedder;
pub use language::Language;
pub use model_embedder::{ModelEmbedder, embedder_of};
pub use search::{Components, Passage, QuestionTerm, QuestionWord, Retrieved, Searcher};
pub use store::{
    CollectionStatus, EmbedReport, Error, FileError, IndexReport, Lines, MAX_BATCH_FILES, Plan, Progress, StoredLines,
    SyncReport, collection_sizes, collections, embed_files, embed_pending, index_files, lines, plan, remove_files,
    sync,
};
pub use tokens::{Tokenizer, Word};
pub use walk::{FileEntry, FileText, Reading, SkipReason, WalkLimits, Walked, read_file, resolve_root, walk};
