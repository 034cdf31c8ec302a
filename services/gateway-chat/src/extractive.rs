//! Answers made of verbatim lines, for when no model writes them.

use cogo_contracts::{ChatMode, ChatReply};
use cogo_rag_core::Extract;

use crate::{
    abstain,
    reply::{citation_of_quote, free},
};

/// The quotes as a reply, or a reply that says that there are none.
pub(crate) fn reply(extract: Extract, collections: &[String]) -> ChatReply {
    match extract {
        Extract::Evidence { text, citations } => {
            let citations = citations.into_iter().map(citation_of_quote).collect();
            free(ChatMode::Extractive, text, citations)
        }
        Extract::NoEvidence { nearest, unknown_words } => abstain::no_evidence(collections, &nearest, &unknown_words),
    }
}
