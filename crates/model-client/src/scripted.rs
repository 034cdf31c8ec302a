//! For tests only: a chat model that says what the test wrote down, under the same limits as a real one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};

use crate::{
    budget,
    chat::{ChatModel, ChatRequest, FinishReason, Usage},
    error::Error,
    http::Deadline,
    settings::Prices,
    stream::{ChatStream, Frame, Terms},
};

/// What the model does with one request.
#[derive(Debug)]
pub struct Turn {
    deltas: Vec<String>,
    usage: Option<Usage>,
    end: End,
}

#[derive(Debug)]
enum End {
    Done,
    Refuses(Error),
    Breaks(Error),
    Stalls,
}

impl Turn {
    /// Answers with one piece.
    #[must_use]
    pub fn reply(text: impl Into<String>) -> Self {
        Self::deltas([text])
    }

    /// Answers with these pieces.
    #[must_use]
    pub fn deltas<T: Into<String>>(deltas: impl IntoIterator<Item = T>) -> Self {
        Self { deltas: deltas.into_iter().map(Into::into).collect(), usage: None, end: End::Done }
    }

    /// Fails before any piece.
    #[must_use]
    pub fn refuse(error: Error) -> Self {
        Self { deltas: Vec::new(), usage: None, end: End::Refuses(error) }
    }

    /// Reports this usage at the end; without it the usage is estimated.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// Fails after the last piece.
    #[must_use]
    pub fn then_breaks(mut self, error: Error) -> Self {
        self.end = End::Breaks(error);
        self
    }

    /// Sends nothing more after the last piece and never ends.
    #[must_use]
    pub fn then_stalls(mut self) -> Self {
        self.end = End::Stalls;
        self
    }
}

/// A fake chat model for tests: it takes its turns in order and remembers what it was asked. Clones share both.
#[derive(Debug, Clone)]
pub struct ScriptedModel {
    name: String,
    prices: Option<Prices>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    turns: VecDeque<Turn>,
    requests: Vec<ChatRequest>,
}

impl ScriptedModel {
    /// A model called `scripted` without a price.
    #[must_use]
    pub fn new(turns: impl IntoIterator<Item = Turn>) -> Self {
        Self {
            name: "scripted".to_owned(),
            prices: None,
            script: Arc::new(Mutex::new(Script { turns: turns.into_iter().collect(), requests: Vec::new() })),
        }
    }

    /// Sets what each token costs.
    #[must_use]
    pub fn with_prices(mut self, prices: Prices) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Sets the name that the model reports, whatever it was asked for.
    #[must_use]
    pub fn serving(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The requests that reached the model, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<ChatRequest> {
        self.lock().requests.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_turn(&self, request: &ChatRequest) -> Result<Turn, Error> {
        let mut script = self.lock();
        script.requests.push(request.clone());
        let turn = script.turns.pop_front();
        turn.ok_or_else(|| Error::bad_reply("the script has no more turns"))
    }
}

impl ChatModel for ScriptedModel {
    fn stream(&self, request: ChatRequest) -> impl Future<Output = Result<ChatStream, Error>> + Send {
        std::future::ready(self.answer(request))
    }
}

impl ScriptedModel {
    fn answer(&self, request: ChatRequest) -> Result<ChatStream, Error> {
        let model = request.model.clone().unwrap_or_else(|| self.name.clone());
        let output_cap = budget::output_cap(&request, &model, self.prices)?;
        let turn = self.next_turn(&request)?;
        let mut frames: Vec<Result<Frame, Error>> = turn.deltas.into_iter().map(text_frame).collect();
        let mut stalls = false;
        match turn.end {
            End::Refuses(error) => return Err(error),
            End::Breaks(error) => frames.push(Err(error)),
            End::Stalls => stalls = true,
            End::Done => frames.push(Ok(Frame {
                model: Some(self.name.clone()),
                usage: turn.usage,
                finish_reason: Some(FinishReason::Stop),
                done: true,
                ..Frame::default()
            })),
        }
        let written = stream::iter(frames);
        let frames = if stalls { written.chain(stream::pending()).boxed() } else { written.boxed() };
        let terms = Terms {
            prompt_tokens: budget::estimate_prompt_tokens(&request.messages),
            output_cap,
            prices: self.prices,
            idle_timeout: Duration::from_secs(30),
            deadline: Deadline::start(Duration::from_secs(300), request.limits.deadline),
            cancellation: request.cancellation,
            model,
        };
        Ok(ChatStream::new(frames, terms))
    }
}

fn text_frame(text: String) -> Result<Frame, Error> {
    Ok(Frame { text, ..Frame::default() })
}
