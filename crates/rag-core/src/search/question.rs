//! What a question says: its terms, and the names and paths that it mentions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::tokens::{Tokenizer, Word};

/// More words than this are a pasted text, whose rarest words still stand among the first.
const MAX_WORDS: usize = 40;
/// Stems that ask rather than tell; dropped while others remain.
const ASKING: [&str; 37] = [
    "actual",
    "calcul",
    "call",
    "class",
    "code",
    "comput",
    "defin",
    "describ",
    "determin",
    "done",
    "exact",
    "exist",
    "explain",
    "file",
    "find",
    "function",
    "give",
    "handl",
    "happen",
    "implement",
    "locat",
    "look",
    "made",
    "mean",
    "method",
    "need",
    "perform",
    "place",
    "pleas",
    "purpos",
    "repositori",
    "show",
    "tell",
    "use",
    "want",
    "way",
    "work",
];
/// Stems of what is only asked for by name: tests and what belongs to them.
const TESTING: [&str; 6] = ["bench", "benchmark", "exampl", "fixtur", "spec", "test"];
/// A part of an identifier says less than the identifier as a whole.
const PART_WEIGHT: f64 = 0.6;

/// A word of the question as the collection knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionWord {
    /// As written.
    pub raw: String,
    /// The whole identifier, when the word has several parts.
    pub joined: Option<QuestionTerm>,
    /// Its parts, or the one stem of a plain word.
    pub parts: Vec<QuestionTerm>,
}

/// A term of the question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionTerm {
    /// The term as it is indexed.
    pub term: String,
    /// Chunks that contain it; 0 means that the collection does not know it.
    pub df: u64,
    /// Inverse document frequency.
    pub idf: f64,
}

/// A question taken apart, before the collection is asked.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) words: Vec<Word>,
    /// Names written as names: `Bus::claim`, `claim_batch`, `HashEmbedder`, `` `claim` ``, `claim()`.
    pub(super) identifiers: BTreeSet<String>,
    /// Lower-case plain words and neighbours joined, which may be names too: `hash embedder` is `HashEmbedder`.
    pub(super) possible_names: BTreeSet<String>,
    /// Path endings such as `src/claim.rs`.
    pub(super) paths: BTreeSet<String>,
    pub(super) asks_about_tests: bool,
    /// What acts answers it rather than what is.
    pub(super) asks_how: bool,
    /// Words that explain answer it rather than statements.
    pub(super) asks_for_prose: bool,
}

impl Question {
    pub(super) fn parse(tokenizer: &Tokenizer, text: &str) -> Self {
        let mut words = tokenizer.words(text);
        words.truncate(MAX_WORDS);
        let telling: Vec<Word> = words.iter().filter(|word| tells(word)).cloned().collect();
        let mut question = Self {
            asks_about_tests: words.iter().flat_map(|word| &word.parts).any(|part| TESTING.contains(&part.as_str())),
            asks_how: says(text, &["how"]),
            asks_for_prose: says(text, &["what", "why", "how", "when", "which", "who"]),
            possible_names: possible_names(&words),
            words: if telling.is_empty() { words } else { telling },
            ..Self::default()
        };
        for raw in
            text.split(|letter: char| letter.is_whitespace() || matches!(letter, ',' | ';' | '"' | '\'' | '<' | '>'))
        {
            question.take_name_or_path(raw);
        }
        question
    }

    /// Distinct terms, each with its weight in the sum of BM25.
    pub(super) fn weights(&self) -> BTreeMap<&str, f64> {
        let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
        for word in &self.words {
            let part_weight = if word.joined.is_some() { PART_WEIGHT } else { 1.0 };
            let parts = word.parts.iter().map(|part| (part.as_str(), part_weight));
            for (term, weight) in parts.chain(word.joined.iter().map(|joined| (joined.as_str(), 1.0))) {
                let entry = weights.entry(term).or_default();
                *entry = entry.max(weight);
            }
        }
        weights
    }

    fn take_name_or_path(&mut self, raw: &str) {
        let quoted = raw.contains('`');
        let called = raw.contains("()");
        let word = raw.replace("()", "").replace("::", ".");
        let word = word.trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '_');
        if word.is_empty() {
            return;
        }
        if is_path(word) {
            self.paths.insert(word.to_owned());
            return;
        }
        let is_name = word.chars().all(|letter| letter.is_alphanumeric() || letter == '_' || letter == '.');
        let has_hump =
            word.chars().zip(word.chars().skip(1)).any(|(left, right)| left.is_lowercase() && right.is_uppercase());
        let spelled_as_name =
            quoted || called || raw.contains("::") || word.contains('_') || word.contains('.') || has_hump;
        if is_name && spelled_as_name {
            self.identifiers.insert(word.to_owned());
        }
    }
}

/// Whether the word tells what the question is about, rather than that it is one.
pub(crate) fn tells(word: &Word) -> bool {
    word.joined.is_some() || word.parts.iter().any(|part| !ASKING.contains(&part.as_str()))
}

fn says(text: &str, wanted: &[&str]) -> bool {
    let mut words = text.split(|letter: char| !letter.is_alphanumeric());
    words.any(|word| wanted.iter().any(|other| word.eq_ignore_ascii_case(other)))
}

/// Single words of three letters and more, and up to three neighbours joined in both spellings.
fn possible_names(words: &[Word]) -> BTreeSet<String> {
    let plain: Vec<String> = words.iter().map(|word| word.raw.to_lowercase().replace('-', "_")).collect();
    let mut names: BTreeSet<String> = plain.iter().filter(|word| word.len() >= 3).cloned().collect();
    for length in 2..=3 {
        for neighbours in plain.windows(length) {
            names.insert(neighbours.join("_"));
            names.insert(neighbours.concat().replace('_', ""));
        }
    }
    names.extend(plain.iter().filter(|word| word.contains('_')).map(|word| word.replace('_', "")));
    names
}

/// `src/claim.rs`, `bus-core/src` or `claim.rs`, but not `and/or` without more and not `Bus.claim`.
fn is_path(word: &str) -> bool {
    const EXTENSIONS: [&str; 14] =
        ["rs", "py", "ts", "tsx", "js", "jsx", "go", "md", "sql", "toml", "yaml", "yml", "json", "sh"];
    let extension = word.rsplit_once('.').map(|(_, extension)| extension);
    let has_extension = extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
    has_extension || word.matches('/').count() >= 2 || (word.contains('/') && word.contains(['-', '_', '.']))
}

#[cfg(test)]
mod tests {
    use super::{Question, Tokenizer};

    fn parse(text: &str) -> Question {
        Question::parse(&Tokenizer::default(), text)
    }

    #[test]
    fn names_and_paths_are_recognised() {
        let question = parse(
            "What does `claim` in Bus::release_all() of src/bus/claim.rs do to HashEmbedder, and/or e.g. lib.rs?",
        );
        let identifiers: Vec<&str> = question.identifiers.iter().map(String::as_str).collect();
        assert_eq!(identifiers, ["Bus.release_all", "HashEmbedder", "claim", "e.g"]);
        let paths: Vec<&str> = question.paths.iter().map(String::as_str).collect();
        assert_eq!(paths, ["lib.rs", "src/bus/claim.rs"]);
    }

    #[test]
    fn neighbours_may_be_a_name() {
        let question = parse("how does the hash embedder work");
        assert!(question.possible_names.contains("hashembedder") && question.possible_names.contains("hash_embedder"));
        let words: Vec<&str> = question.words.iter().map(|word| word.raw.as_str()).collect();
        assert_eq!(words, ["hash", "embedder"], "words that only ask are dropped");
    }

    #[test]
    fn question_of_asking_words_keeps_them() {
        assert_eq!(parse("how does the code work?").words.len(), 2);
        assert_eq!(parse("\0 ?!").words.len(), 0);
    }

    #[test]
    fn whole_identifier_weighs_more_than_its_parts() {
        let question = parse("claim_batch");
        let weights = question.weights();
        assert!(weights["claim_batch"] > weights["claim"]);
    }
}
