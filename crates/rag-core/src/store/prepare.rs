//! Everything about a file that is computed before a row is written.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::{
    chunk::{Chunk, chunk},
    tokens::Tokenizer,
    walk::{FileEntry, FileText},
};

/// A name says more about a chunk than its body, so its terms count this often.
const NAME_REPEATS: usize = 2;

/// A file ready to be stored.
pub(super) struct PreparedFile {
    pub(super) entry: FileEntry,
    pub(super) chunks: Vec<PreparedChunk>,
}

/// A chunk with its terms.
pub(super) struct PreparedChunk {
    pub(super) chunk: Chunk,
    /// Distinct terms with how often each occurs, ordered by term.
    pub(super) terms: BTreeMap<String, i32>,
    pub(super) token_count: i32,
    pub(super) text_sha256: Vec<u8>,
}

/// Cuts and counts one file.
pub(super) fn prepare(tokenizer: &Tokenizer, file: FileText) -> PreparedFile {
    let path_terms = tokenizer.terms(&file.entry.path);
    let chunks = chunk(file.entry.language, &file.text)
        .into_iter()
        .map(|chunk| prepare_chunk(tokenizer, &path_terms, chunk))
        .collect();
    PreparedFile { entry: file.entry, chunks }
}

fn prepare_chunk(tokenizer: &Tokenizer, path_terms: &[String], chunk: Chunk) -> PreparedChunk {
    let mut terms: BTreeMap<String, i32> = BTreeMap::new();
    let mut token_count = 0;
    let name = name_of(chunk.qualified_name.as_deref(), chunk.heading.as_deref());
    let name_terms = tokenizer.terms(name);
    let repeated = std::iter::repeat_n(name_terms, NAME_REPEATS).flatten();
    for term in tokenizer.terms(&chunk.text).into_iter().chain(repeated).chain(path_terms.iter().cloned()) {
        *terms.entry(term).or_default() += 1;
        token_count += 1;
    }
    let text_sha256 = Sha256::digest(embedded_text(name, &chunk.text)).to_vec();
    PreparedChunk { chunk, terms, token_count, text_sha256 }
}

/// What a chunk is called: its definition or its headings.
pub(super) fn name_of<'row>(qualified_name: Option<&'row str>, heading: Option<&'row str>) -> &'row str {
    qualified_name.or(heading).unwrap_or("")
}

/// The text that is embedded. The path is left out, so that a renamed file costs nothing.
pub(super) fn embedded_text(name: &str, content: &str) -> String {
    if name.is_empty() { content.to_owned() } else { format!("{name}\n{content}") }
}
