//! Finds the passages that answer a question: BM25, vectors where there are any, and names that the question mentions.

mod candidates;
mod coverage;
mod lexical;
mod question;
mod rank;
mod reading;
mod searcher;
mod vectors;

use serde::{Deserialize, Serialize};

pub use question::{QuestionTerm, QuestionWord};
pub use searcher::Searcher;

pub(crate) use coverage::Terms;
pub(crate) use question::tells;

/// A range of lines that may answer the question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// Collection of the file.
    pub collection: String,
    /// Path below the collection's root.
    pub path: String,
    /// Language of the file.
    pub language: String,
    /// `function`, `struct`, `section`, ... as the chunk was cut.
    pub kind: String,
    /// Qualified name of the definition, where there is one.
    pub symbol: Option<String>,
    /// Headings above a section of prose.
    pub heading: Option<String>,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, inclusive.
    pub end_line: u32,
    /// Whether the passage starts a definition or section rather than continuing one.
    pub is_start: bool,
    /// The lines, verbatim.
    pub text: String,
    /// Hash of the whole file as it was indexed, hexadecimal; a citation is stale once the file's differs.
    pub sha256: String,
    /// Final score; comparable within one answer only.
    pub score: f64,
    /// What the score is made of.
    pub components: Components,
}

/// Parts of a score, for explaining it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Components {
    /// BM25 score.
    pub bm25: f64,
    /// Cosine of question and passage; absent without a vector.
    pub dense: Option<f64>,
    /// Added because the question names the definition or its file.
    pub symbol: f64,
}

/// Passages with what the collection knows about the question's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// As it was asked.
    pub question: String,
    /// Best first.
    pub passages: Vec<Passage>,
    /// The words of the question that carry meaning.
    pub words: Vec<QuestionWord>,
    /// Chunks that were searched.
    pub chunk_count: u64,
    /// Whether meaning was compared by vectors of a model; false means words only.
    pub semantic: bool,
}
