//! The handler of gateway/chat: the graph answers what is structural, passages answer the rest.

use std::sync::Arc;

use anyhow::Context;
use cogo_contracts::{Assignment, ChatMode, ChatReply, ChatRequest, Route, routes};
use cogo_model_client::ChatModel;
use cogo_rag_core::{Extract, collection_sizes, extract};
use cogo_service_runtime::{Claim, Handler, HandlerError};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::{
    abstain, extractive,
    graph::Graphs,
    intent::classify,
    live::{Live, Writer},
    reply::{degrade, joined},
    search::Search,
    writing::Writers,
    written::{self, Cost, Outcome},
};

/// Longest question; what is longer is a document, not a question.
pub const MAX_QUESTION_CHARS: usize = 4_000;
/// Passages that go into choosing an answer.
const PASSAGES: usize = 12;
/// Characters of an answer that lists show.
const SUMMARY_CHARS: usize = 300;

/// A question's frame: whose it is and what answering it may use up.
pub struct Asked<'claim> {
    /// Id of the message.
    pub message: Uuid,
    /// The task that it belongs to.
    pub task: Uuid,
    /// Whose question it is.
    pub tenant: &'claim str,
    /// Budget and model.
    pub assignment: &'claim Assignment,
    /// When the time to live passes.
    pub deadline: Option<Instant>,
    /// Fires when nobody wants the answer any more.
    pub token: CancellationToken,
}

/// What answering needs.
pub struct Parts<M> {
    /// Where index and graph stand.
    pub pool: PgPool,
    /// Finds passages.
    pub search: Arc<Search>,
    /// Who writes answers.
    pub writers: Arc<Writers<M>>,
    /// Where the text can be followed while it is written.
    pub live: Arc<Live>,
}

/// Answers questions.
pub struct Chat<M> {
    parts: Parts<M>,
}

impl<M: ChatModel + 'static> Handler for Chat<M> {
    const ROUTE: Route = routes::CHAT;
    type Request = ChatRequest;
    type Reply = ChatReply;

    async fn handle(&self, request: ChatRequest, claim: &Claim) -> Result<ChatReply, HandlerError> {
        let asked = Asked {
            message: claim.id(),
            task: claim.task(),
            tenant: claim.tenant(),
            assignment: claim.assignment(),
            deadline: claim.deadline(),
            token: claim.token().clone(),
        };
        let reply = self.answer(&request, &asked).await?;
        claim.summarize(reply.answer.chars().take(SUMMARY_CHARS).collect::<String>());
        Ok(reply)
    }
}

impl<M: ChatModel> Chat<M> {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts<M>) -> Self {
        Self { parts }
    }

    /// Answers one question.
    ///
    /// # Errors
    /// Rejects questions that are empty or too long and collections that do not exist; asks for another attempt when
    /// the database does not answer. A model that fails costs the written answer, not the answer.
    pub async fn answer(&self, request: &ChatRequest, asked: &Asked<'_>) -> Result<ChatReply, HandlerError> {
        let writer = self.parts.live.begin(&[asked.message, asked.task]);
        let reply = self.reply(request, asked, &writer).await?;
        info!(mode = ?reply.mode, citations = reply.citations.len(), "answered");
        writer.end(reply.mode);
        Ok(reply)
    }

    async fn reply(
        &self,
        request: &ChatRequest,
        asked: &Asked<'_>,
        writer: &Writer,
    ) -> Result<ChatReply, HandlerError> {
        let question = checked_question(&request.question)?;
        let Some(collections) = self.collections(asked.tenant, request.collection.as_deref()).await? else {
            return Ok(abstain::nothing_indexed());
        };
        let graphs = Graphs { pool: &self.parts.pool, tenant: asked.tenant, collections: &collections };
        if let Some(reply) = graphs.answer(&classify(&question)).await? {
            return Ok(reply);
        }
        let searcher = self.parts.search.searcher();
        let found = searcher.search(asked.tenant, request.collection.as_deref(), &question, PASSAGES).await;
        let found = found.context("search for passages")?;
        let extract = extract(&found);
        let has_evidence = matches!(extract, Extract::Evidence { .. });
        let writing = self.parts.writers.now();
        let mut reply = match &writing.model {
            // words that say nothing about the question leave a model nothing to write from
            Some(model) if has_evidence || (found.semantic && !found.passages.is_empty()) => {
                let outcome = written::write(model, &question, &found.passages, writing.limits, asked, writer).await;
                written(outcome, extract, &collections, asked.assignment)
            }
            model => verbatim(extract, &collections, asked.assignment, model.is_some()),
        };
        if !found.semantic {
            degrade(&mut reply, self.parts.search.why_not_semantic());
        }
        Ok(reply)
    }

    /// The collections that the question is about; none if nothing of the tenant is indexed.
    async fn collections(&self, tenant: &str, wanted: Option<&str>) -> Result<Option<Vec<String>>, HandlerError> {
        let known = collection_sizes(&self.parts.pool, tenant).await.context("list the collections")?;
        if known.iter().all(|(_, chunks)| *chunks == 0) {
            return Ok(None);
        }
        let names: Vec<String> = known.into_iter().map(|(name, _)| name).collect();
        match wanted {
            None => Ok(Some(names)),
            Some(wanted) if names.iter().any(|name| name == wanted) => Ok(Some(vec![wanted.to_owned()])),
            Some(wanted) => {
                let wanted: String = wanted.chars().take(80).collect();
                let known = joined(&names);
                Err(HandlerError::rejected(format!("There is no collection {wanted:?}; there are: {known}")))
            }
        }
    }
}

fn verbatim(extract: Extract, collections: &[String], assignment: &Assignment, has_model: bool) -> ChatReply {
    let mut reply = extractive::reply(extract, collections);
    if reply.mode == ChatMode::Extractive && !has_model {
        let wanted = assignment.model.as_ref().map(|model| format!(" although {model} was asked for"));
        let wanted = wanted.unwrap_or_default();
        degrade(&mut reply, format!("no chat model is configured{wanted}, so the answer is verbatim lines"));
    }
    reply
}

/// The answer that the model wrote, or the verbatim lines instead; what was spent is told in both cases.
fn written(outcome: Outcome, extract: Extract, collections: &[String], assignment: &Assignment) -> ChatReply {
    let (mut reply, Cost { model, usage }) = match outcome {
        Outcome::Answer { text, citations, degraded, cost } => {
            let answer =
                ChatReply { answer: text, mode: ChatMode::Llm, citations, degraded, model: None, usage: cost.usage };
            (answer, cost)
        }
        Outcome::Unusable { reason, cost } => {
            let mut reply = verbatim(extract, collections, assignment, true);
            degrade(&mut reply, format!("the model wrote no answer that can be used ({reason})"));
            (reply, cost)
        }
    };
    reply.model = model;
    reply.usage = usage;
    reply
}

/// The question without blanks around it and without what no text column holds.
fn checked_question(question: &str) -> Result<String, HandlerError> {
    let question = question.replace('\0', " ").trim().to_owned();
    if question.is_empty() {
        return Err(HandlerError::rejected("The question is empty"));
    }
    let length = question.chars().count();
    if length > MAX_QUESTION_CHARS {
        let reason = format!("The question has {length} characters, at most {MAX_QUESTION_CHARS} are read");
        return Err(HandlerError::rejected(reason));
    }
    Ok(question)
}
