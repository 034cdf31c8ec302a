//! Answers made of verbatim lines, without any language model.

mod window;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    echo::Asked,
    search::{Passage, Retrieved, Terms},
    tokens::Tokenizer,
};
use window::{Window, best_window};

/// Quotes in one answer.
const MAX_QUOTES: usize = 5;
/// Hints when there is no evidence.
const MAX_HINTS: usize = 3;
/// Share of the question's weight that one passage must cover. Calibrated on the questions of `tests/it/quality.rs` and
/// on two large trees: questions with an answer start above it, those about things unknown there end below it.
const EVIDENCE_THRESHOLD: f64 = 0.45;
/// The same when the collection knows every word: a passage then need not hold all of them.
const ALL_KNOWN_THRESHOLD: f64 = 0.4;
/// The question names this very definition, so its lines are evidence whatever else is asked about it.
const NAMED_BOOST: f64 = 0.75;
/// A further quote must cover this share of what the best one covers.
const FURTHER_QUOTE_SHARE: f64 = 0.7;
/// A further quote's passage must have this share of the best passage's score.
const FURTHER_SCORE_SHARE: f64 = 0.55;

/// Lines of an indexed file; `quote` is exactly what stands there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// Collection of the file.
    pub collection: String,
    /// Path below the collection's root.
    pub path: String,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, inclusive.
    pub end_line: u32,
    /// Qualified name of the definition, where there is one.
    pub symbol: Option<String>,
    /// The lines, verbatim, joined by a line feed.
    pub quote: String,
    /// Hash of the whole file as it was indexed, hexadecimal.
    pub sha256: String,
    /// Share of the question's weight that the lines cover, 0 to 1.
    pub score: f64,
}

/// What the passages say about the question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Extract {
    /// The lines answer the question, as far as words can tell.
    Evidence {
        /// The quotes, numbered, each under its citation.
        text: String,
        /// One for each quote, in order.
        citations: Vec<Citation>,
    },
    /// Nothing found says enough about the question.
    NoEvidence {
        /// The nearest lines, which are no answer.
        nearest: Vec<Citation>,
        /// Words of the question that occur nowhere in the collection.
        unknown_words: Vec<String>,
    },
}

impl Citation {
    /// `path:start-end`, as every answer shows it.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}:{}-{}", self.path, self.start_line, self.end_line)
    }

    /// Whether these lines of `file_text` are the quote.
    #[must_use]
    pub fn holds_in(&self, file_text: &str) -> bool {
        let Some(before) = (self.start_line as usize).checked_sub(1) else { return false };
        let lines: Vec<&str> = file_text.lines().skip(before).take(self.quote.lines().count()).collect();
        self.end_line as usize == before + lines.len() && lines.join("\n") == self.quote
    }
}

/// Picks the lines that answer the question, or says that there are none.
#[must_use]
pub fn extract(retrieved: &Retrieved) -> Extract {
    let tokenizer = Tokenizer::default();
    let terms = Terms::of(&retrieved.words, retrieved.chunk_count);
    let asked = Asked::of(&tokenizer, &retrieved.question);
    let mut quotes: Vec<Quote<'_>> =
        retrieved.passages.iter().filter_map(|passage| Quote::of(passage, &asked, &terms, &tokenizer)).collect();
    let best_score = retrieved.passages.iter().map(|passage| passage.score).fold(f64::MIN, f64::max);
    // The search knows the passage, the window knows the lines; both have a say.
    let rank = |quote: &Quote<'_>| quote.passage.score / best_score.max(f64::EPSILON) + quote.window.coverage;
    quotes.sort_by(|left, right| rank(right).total_cmp(&rank(left)));

    let threshold = if terms.knows_every_word() { ALL_KNOWN_THRESHOLD } else { EVIDENCE_THRESHOLD };
    let is_evidence = |quote: &Quote<'_>| {
        let named = quote.passage.components.symbol >= NAMED_BOOST;
        named || (quote.share >= threshold && !terms.is_about_the_unknown())
    };
    let Some(first) = quotes.iter().find(|quote| is_evidence(quote)) else {
        return Extract::NoEvidence {
            nearest: quotes.iter().take(MAX_HINTS).map(Quote::citation).collect(),
            unknown_words: terms.unknown_words(),
        };
    };
    let floor = first.share * FURTHER_QUOTE_SHARE;
    let keeps_up = |quote: &Quote<'_>| quote.share >= floor && quote.passage.score >= best_score * FURTHER_SCORE_SHARE;
    let further = quotes.iter().filter(|quote| !std::ptr::eq(*quote, first) && is_evidence(quote) && keeps_up(quote));
    let kept = std::iter::once(first).chain(further).take(MAX_QUOTES).map(Quote::citation).collect();
    let citations = without_overlaps(kept);
    Extract::Evidence { text: text_of(&citations), citations }
}

/// The best lines of one passage.
struct Quote<'passage> {
    passage: &'passage Passage,
    window: Window,
    share: f64,
}

impl<'passage> Quote<'passage> {
    /// `None` if the lines do nothing but repeat the question, or say nothing about it.
    fn of(passage: &'passage Passage, asked: &Asked, terms: &Terms, tokenizer: &Tokenizer) -> Option<Self> {
        let name = [passage.symbol.as_deref(), passage.heading.as_deref()].into_iter().flatten();
        let named = name.fold(0, |mask, name| mask | terms.mask(tokenizer, name));
        let lines: Vec<&str> = passage.text.lines().collect();
        let lines = asked.without_echo(tokenizer, &lines, passage.kind == "section");
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        let masks: Vec<u64> = lines.iter().map(|line| terms.mask(tokenizer, line)).collect();
        let around = named | terms.mask(tokenizer, &passage.path);
        let share = terms.coverage(masks.iter().fold(around, |all, mask| all | mask));
        let window = best_window(passage, &lines, &masks, named, terms);
        let says = lines[window.start..window.end].iter().any(|line| line.chars().any(char::is_alphanumeric));
        let is_near = share > 0.0 || passage.components.symbol > 0.0;
        (says && is_near).then_some(Self { passage, window, share })
    }

    fn citation(&self) -> Citation {
        let passage = self.passage;
        let quote: Vec<&str> =
            passage.text.lines().skip(self.window.start).take(self.window.end - self.window.start).collect();
        Citation {
            collection: passage.collection.clone(),
            path: passage.path.clone(),
            start_line: passage.start_line + u32::try_from(self.window.start).unwrap_or(0),
            end_line: passage.start_line + u32::try_from(self.window.end).unwrap_or(1) - 1,
            symbol: passage.symbol.clone(),
            quote: quote.join("\n"),
            sha256: passage.sha256.clone(),
            score: self.share,
        }
    }
}

/// Leaves out lines that an earlier quote shows already.
fn without_overlaps(citations: Vec<Citation>) -> Vec<Citation> {
    let mut kept: Vec<Citation> = Vec::with_capacity(citations.len());
    for citation in citations {
        let shown = kept.iter().any(|other| {
            other.collection == citation.collection
                && other.path == citation.path
                && other.start_line <= citation.end_line
                && citation.start_line <= other.end_line
        });
        if !shown {
            kept.push(citation);
        }
    }
    kept
}

fn text_of(citations: &[Citation]) -> String {
    let mut text = String::new();
    for (index, citation) in citations.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n\n" };
        let name = citation.symbol.as_deref().map(|symbol| format!(" {symbol}")).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}[{}] {}{name}\n{}", index + 1, citation.reference(), citation.quote);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Citation;

    #[test]
    fn citation_holds_only_where_its_lines_stand() {
        let citation = Citation {
            collection: "repo".to_owned(),
            path: "a.rs".to_owned(),
            start_line: 2,
            end_line: 3,
            symbol: None,
            quote: "two\nthree".to_owned(),
            sha256: String::new(),
            score: 1.0,
        };
        assert!(citation.holds_in("one\ntwo\nthree\nfour\n"));
        assert!(!citation.holds_in("two\nthree\n"));
        assert!(!citation.holds_in("one\ntwo\n"));
        assert!(!Citation { end_line: 4, ..citation.clone() }.holds_in("one\ntwo\nthree\nfour\n"));
        assert!(!Citation { start_line: 0, ..citation }.holds_in("one\ntwo\nthree\n"));
    }
}
