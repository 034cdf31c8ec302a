//! Says that there is no evidence, and where the nearest things stand.

use std::fmt::Write as _;

use cogo_contracts::{ChatMode, ChatReply};
use cogo_rag_core::Citation as Quote;

use crate::reply::{free, joined};

/// Nothing of the tenant is indexed.
pub(crate) fn nothing_indexed() -> ChatReply {
    let answer = "Nothing is indexed yet, so there is nothing to answer from. Index a tree first: `cogo index PATH`.";
    free(ChatMode::Abstain, answer.to_owned(), Vec::new())
}

/// Nothing that was found says enough.
pub(crate) fn no_evidence(collections: &[String], nearest: &[Quote], unknown_words: &[String]) -> ChatReply {
    let mut answer = format!("I found no evidence for an answer in {}.", joined(collections));
    if !unknown_words.is_empty() {
        let words: Vec<String> = unknown_words.iter().map(|word| format!("\"{word}\"")).collect();
        // writing to a string cannot fail
        let _ = write!(answer, " It says nothing about {}.", joined(&words));
    }
    if !nearest.is_empty() {
        answer.push_str(" The nearest places, which are no answer:");
        for place in nearest {
            let name = place.symbol.as_deref().map(|symbol| format!(" ({symbol})")).unwrap_or_default();
            let _ = write!(answer, "\n- {}{name}", place.reference());
        }
    }
    free(ChatMode::Abstain, answer, Vec::new())
}
