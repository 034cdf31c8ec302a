//! Keeps the index equal to the files, writing only what changed; all statements that write stand below here.

mod chunks;
mod embedding;
mod index;
mod lines;
mod plan;
mod postings;
mod prepare;
mod scope;
mod sync;

pub use embedding::{EmbedReport, embed_files, embed_pending};
pub use index::{FileError, IndexReport, index_files, remove_files};
pub use lines::{Lines, StoredLines, lines};
pub use plan::{Plan, plan};
pub use scope::{CollectionStatus, collection_sizes, collections};
pub use sync::{Progress, SyncReport, sync};

/// Files that go into one transaction and one message: few enough that a lost worker costs little.
pub const MAX_BATCH_FILES: usize = 64;

/// Why the index could not be brought up to date or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused a statement or is not reachable.
    #[error("Index cannot be reached")]
    Database(#[from] sqlx::Error),
    /// The root cannot be walked.
    #[error("Files cannot be walked")]
    Walk(#[from] crate::walk::Error),
    /// The embedder gave no vectors.
    #[error("Chunks cannot be embedded")]
    Embed(#[from] crate::embed::EmbedError),
    /// Reading or cutting files panicked or was cancelled with the runtime.
    #[error("File work did not finish")]
    FileWork(#[from] tokio::task::JoinError),
}
