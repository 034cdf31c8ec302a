//! Puts replies together.

use cogo_contracts::{ChatMode, ChatReply, Citation, Usage};
use cogo_rag_core::{Citation as Quote, Passage};

/// A reply that cost nothing.
pub(crate) fn free(mode: ChatMode, answer: String, citations: Vec<Citation>) -> ChatReply {
    ChatReply { answer, mode, citations, degraded: None, model: None, usage: Usage::default() }
}

/// The quoted lines as a citation.
pub(crate) fn citation_of_quote(quote: Quote) -> Citation {
    Citation {
        path: quote.path,
        start: quote.start_line,
        end: quote.end_line,
        collection: quote.collection,
        sha256: quote.sha256,
        text: quote.quote,
    }
}

/// The whole passage as a citation.
pub(crate) fn citation_of_passage(passage: &Passage) -> Citation {
    Citation {
        path: passage.path.clone(),
        start: passage.start_line,
        end: passage.end_line,
        collection: passage.collection.clone(),
        sha256: passage.sha256.clone(),
        text: passage.text.clone(),
    }
}

/// Adds a reason why the reply is worse than it could be.
pub(crate) fn degrade(reply: &mut ChatReply, reason: impl Into<String>) {
    let reason = reason.into();
    reply.degraded = Some(match reply.degraded.take() {
        Some(earlier) => format!("{earlier}; {reason}"),
        None => reason,
    });
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn joined(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [before @ .., last] => format!("{} and {last}", before.join(", ")),
    }
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
