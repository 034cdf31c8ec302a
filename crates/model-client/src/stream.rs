//! An answer on its way: metered against its limits, under deadlines, ended when it is dropped.

use std::time::Duration;

use futures_util::{StreamExt, stream::BoxStream};
use tokio_util::sync::CancellationToken;

use crate::{
    budget,
    chat::{Completion, FinishReason, Usage},
    error::{Error, Phase},
    http::Deadline,
    settings::Prices,
};

/// What a provider says at once; an empty one only shows that it is alive.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Frame {
    pub(crate) text: String,
    /// Bytes of billed output that is not part of the answer.
    pub(crate) hidden_bytes: usize,
    pub(crate) model: Option<String>,
    pub(crate) usage: Option<Usage>,
    pub(crate) finish_reason: Option<FinishReason>,
    pub(crate) done: bool,
}

/// What a stream gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatEvent {
    /// The next piece of the answer, never empty.
    Delta(String),
    /// The whole answer; nothing follows.
    Done(Completion),
}

/// The terms under which an answer streams.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) model: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_cap: Option<u64>,
    pub(crate) prices: Option<Prices>,
    pub(crate) idle_timeout: Duration,
    pub(crate) deadline: Deadline,
    pub(crate) cancellation: CancellationToken,
}

/// An answer that arrives piece by piece. Dropping it ends the call at the provider.
pub struct ChatStream {
    frames: Option<BoxStream<'static, Result<Frame, Error>>>,
    terms: Terms,
    text: String,
    pieces: u64,
    output_bytes: usize,
    model_served: Option<String>,
    usage: Option<Usage>,
    finish_reason: Option<FinishReason>,
    done: bool,
}

impl ChatStream {
    pub(crate) fn new(frames: BoxStream<'static, Result<Frame, Error>>, terms: Terms) -> Self {
        Self {
            frames: Some(frames),
            terms,
            text: String::new(),
            pieces: 0,
            output_bytes: 0,
            model_served: None,
            usage: None,
            finish_reason: None,
            done: false,
        }
    }

    /// The next event; `None` after [`ChatEvent::Done`] and after an error. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Cancelled`], [`Error::Unreachable`], [`Error::BadReply`], and what the provider
    /// reports in mid-stream. What the answer cost until then is in [`ChatStream::so_far`].
    pub async fn next(&mut self) -> Option<Result<ChatEvent, Error>> {
        loop {
            let frames = self.frames.as_mut()?;
            if self.done {
                return Some(Ok(self.end()));
            }
            let terms = &self.terms;
            let frame =
                terms.deadline.within(terms.idle_timeout, Phase::Idle, &terms.cancellation, frames.next()).await;
            match frame {
                Ok(Some(Ok(frame))) => {
                    if let Some(event) = self.take(frame) {
                        return Some(Ok(event));
                    }
                }
                // Servers exist that close, or hang, after the finish reason: the answer is whole all the same.
                _ if self.finish_reason.is_some() => self.done = true,
                Ok(Some(Err(error))) | Err(error) => {
                    self.frames = None;
                    return Some(Err(error));
                }
                Ok(None) => {
                    self.frames = None;
                    return Some(Err(Error::bad_reply("the stream broke off before its end")));
                }
            }
        }
    }

    /// Waits for the end of the answer.
    ///
    /// # Errors
    /// As [`ChatStream::next`]; [`Error::BadReply`] when the stream has ended before.
    pub async fn finish(&mut self) -> Result<Completion, Error> {
        while let Some(event) = self.next().await {
            if let ChatEvent::Done(completion) = event? {
                return Ok(completion);
            }
        }
        Err(Error::bad_reply("the stream was read to its end before"))
    }

    /// The answer and its cost until now, for booking what an answer cost that broke.
    #[must_use]
    pub fn so_far(&self) -> Completion {
        let estimated = Usage { input_tokens: self.terms.prompt_tokens, output_tokens: self.estimated_output() };
        // A gateway that reports no output for an answer with text would make it free.
        let reported = self.usage.filter(|usage| usage.output_tokens > 0 || estimated.output_tokens == 0);
        let usage = reported.unwrap_or(estimated);
        Completion {
            text: self.text.clone(),
            model_requested: self.terms.model.clone(),
            model_served: self.model_served.clone(),
            usage,
            usage_estimated: reported.is_none(),
            finish_reason: self.finish_reason.clone().unwrap_or(FinishReason::Unfinished),
            cost_nano_usd: self.terms.prices.map(|prices| budget::cost_nano_usd(prices, usage)),
        }
    }

    /// Servers send a token or more in each piece, so there are at least as many tokens as pieces.
    fn estimated_output(&self) -> u64 {
        self.pieces.max(budget::tokens_of_bytes(self.output_bytes))
    }

    fn take(&mut self, frame: Frame) -> Option<ChatEvent> {
        let output_bytes = frame.text.len() + frame.hidden_bytes;
        if output_bytes > 0 {
            let output_until_now = self.estimated_output();
            self.pieces += 1;
            self.output_bytes += output_bytes;
            // Usage that came earlier does not cover this piece.
            self.usage = None;
            if self.terms.output_cap.is_some_and(|cap| output_until_now >= cap) {
                self.finish_reason = Some(FinishReason::CutOff);
                return Some(self.end());
            }
        }
        self.model_served = frame.model.or_else(|| self.model_served.take());
        self.usage = frame.usage.or(self.usage);
        self.finish_reason = frame.finish_reason.or_else(|| self.finish_reason.take());
        self.done = frame.done;
        if frame.text.is_empty() {
            return None;
        }
        self.text.push_str(&frame.text);
        Some(ChatEvent::Delta(frame.text))
    }

    fn end(&mut self) -> ChatEvent {
        self.frames = None;
        self.finish_reason.get_or_insert(FinishReason::Stop);
        ChatEvent::Done(self.so_far())
    }
}

impl std::fmt::Debug for ChatStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the text: answers do not belong in logs.
        formatter
            .debug_struct("ChatStream")
            .field("terms", &self.terms)
            .field("output_bytes", &self.output_bytes)
            .field("finish_reason", &self.finish_reason)
            .finish_non_exhaustive()
    }
}
