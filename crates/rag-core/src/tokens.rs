//! Turns text into search terms, the same way for documents and for questions.

use std::borrow::Cow;

use rust_stemmers::{Algorithm, Stemmer};

/// Longer runs are hashes and encoded data, which nobody asks for by typing them.
const LONGEST_TERM_CHARS: usize = 64;

/// English words and keywords that occur in nearly every chunk and so tell nothing about it.
const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "before", "being", "between", "both", "but", "by", "can", "could", "did", "do", "does", "doing", "down", "each",
    "else", "every", "few", "fn", "for", "from", "func", "had", "has", "have", "having", "he", "her", "here", "him",
    "his", "how", "i", "if", "in", "into", "is", "it", "its", "itself", "just", "let", "me", "more", "most", "mut",
    "my", "no", "nor", "not", "now", "of", "off", "on", "once", "one", "only", "or", "other", "our", "out", "over",
    "own", "per", "pub", "return", "returns", "same", "self", "she", "should", "so", "some", "such", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "through", "to", "too", "two", "under",
    "until", "up", "upon", "var", "very", "via", "was", "we", "were", "what", "when", "where", "whether", "which",
    "while", "who", "whom", "why", "will", "with", "within", "would", "you", "your",
];

/// One word as it stands in the text, with the terms that it yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The word as written.
    pub raw: String,
    /// The whole identifier in its canonical form, when it has several parts: `bus_claim` for `BusClaim`.
    pub joined: Option<String>,
    /// Stemmed parts; for a plain word just its stem.
    pub parts: Vec<String>,
}

/// Splits text into terms; holds the stemmer, so one value serves many texts.
pub struct Tokenizer {
    stemmer: Stemmer,
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }
}

impl Tokenizer {
    /// All terms of `text` in order, with repeats: parts of identifiers, stemmed, and the identifiers as a whole.
    #[must_use]
    pub fn terms(&self, text: &str) -> Vec<String> {
        let mut terms = Vec::with_capacity(text.len() / 6);
        for raw in words(text) {
            self.push_terms(raw, &mut terms);
        }
        terms
    }

    /// The words of a question with the terms of each, stop words left out.
    #[must_use]
    pub fn words(&self, text: &str) -> Vec<Word> {
        let mut found = Vec::new();
        for raw in words(text) {
            let mut parts = Vec::new();
            self.push_terms(raw, &mut parts);
            if parts.is_empty() {
                continue;
            }
            let joined = (parts.len() > 1).then(|| parts.remove(0));
            found.push(Word { raw: raw.to_owned(), joined, parts });
        }
        found
    }

    /// The joined identifier comes first when the word has several parts.
    fn push_terms(&self, raw: &str, terms: &mut Vec<String>) {
        let pieces = split_identifier(raw);
        if let [only] = pieces.as_slice() {
            self.push_part(only, terms);
            return;
        }
        let before = terms.len();
        for piece in &pieces {
            self.push_part(piece, terms);
        }
        let joined = pieces.iter().map(|piece| piece.to_lowercase()).collect::<Vec<_>>().join("_");
        let useful = joined.chars().any(char::is_alphabetic) && joined.chars().count() <= LONGEST_TERM_CHARS;
        if useful {
            terms.insert(before, joined);
        }
    }

    fn push_part(&self, piece: &str, terms: &mut Vec<String>) {
        let lower = piece.to_lowercase();
        let length = lower.chars().count();
        let too_short = length < 2 && lower.is_ascii();
        if too_short || length > LONGEST_TERM_CHARS || STOP_WORDS.binary_search(&lower.as_str()).is_ok() {
            return;
        }
        match self.stemmer.stem(&lower) {
            Cow::Borrowed(stem) => terms.push(stem.to_owned()),
            Cow::Owned(stem) => terms.push(stem),
        }
    }
}

/// Runs of letters, digits and `_`, with a `-` kept between letters so that kebab names stay whole.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_alphanumeric() || character == '_' || character == '-'))
        .flat_map(split_loose_dashes)
        .filter(|word| word.chars().any(char::is_alphanumeric))
}

/// `a-b` with letters around every dash is one name; `-1`, `--flag` and `n-1` are not.
fn split_loose_dashes(run: &str) -> Vec<&str> {
    let kebab = run.contains('-')
        && run.split('-').all(|part| part.len() > 1 && part.starts_with(|first: char| first.is_alphabetic()));
    if kebab { vec![run] } else { run.split('-').collect() }
}

/// Parts of an identifier: snake, kebab, camel and runs of capitals; digits stay with the letters before them.
fn split_identifier(word: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    for section in word.split(['_', '-']).filter(|section| !section.is_empty()) {
        let characters: Vec<(usize, char)> = section.char_indices().collect();
        let mut start = 0;
        for index in 1..characters.len() {
            let (previous, (offset, current)) = (characters[index - 1].1, characters[index]);
            let next_is_lower = characters.get(index + 1).is_some_and(|(_, next)| next.is_lowercase());
            let hump = !previous.is_uppercase() && current.is_uppercase();
            let end_of_capitals = previous.is_uppercase() && current.is_uppercase() && next_is_lower;
            if hump || end_of_capitals {
                pieces.push(&section[start..offset]);
                start = offset;
            }
        }
        pieces.push(&section[start..]);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{STOP_WORDS, Tokenizer};

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(Tokenizer::default().terms(text), expected, "{text}");
    }

    #[test]
    fn identifiers_are_split_and_kept_whole() {
        check("claim_batch", &["claim_batch", "claim", "batch"]);
        check("ClaimBatch", &["claim_batch", "claim", "batch"]);
        check("claim-batch", &["claim_batch", "claim", "batch"]);
        check("parseHTTPRequest", &["parse_http_request", "pars", "http", "request"]);
        check("crates/bus-core/src/lease.rs", &["crate", "bus_core", "bus", "core", "src", "leas", "rs"]);
        check("text_sha256", &["text_sha256", "text", "sha256"]);
    }

    #[test]
    fn words_are_stemmed_and_stop_words_dropped() {
        check("How are the dead letters replayed?", &["dead", "letter", "replay"]);
        check("retries RETRY retried", &["retri", "retri", "retri"]);
        check("x = n-1 --flag 3", &["flag"]);
    }

    #[test]
    fn nul_and_symbols_yield_no_terms() {
        check("\0 \u{0} {} () => ;", &[]);
    }

    #[test]
    fn stop_words_are_sorted_for_the_search() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn question_words_keep_their_grouping() {
        let words = Tokenizer::default().words("where is BusReclaimer started");
        assert_eq!(words.len(), 2);
        assert_eq!(words[0].joined.as_deref(), Some("bus_reclaimer"));
        assert_eq!(words[0].parts, ["bus", "reclaim"]);
        assert_eq!((words[1].joined.as_deref(), words[1].parts.len()), (None, 1));
    }
}
