//! The chat side of an OpenAI-compatible provider: llama.cpp, vLLM, Ollama, OpenRouter, LiteLLM and OpenAI itself.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream, stream::BoxStream};
use reqwest::{Response, header::CONTENT_TYPE};

use crate::{
    budget,
    chat::{ChatModel, ChatRequest},
    error::Error,
    http::{self, Deadline, Transport},
    settings::{OutputCapField, Secret, Settings},
    sse,
    stream::{ChatStream, Frame, Terms},
    wire,
};

/// Longest reply that is accepted when a gateway sends the answer as a whole instead of streaming it.
const MAX_WHOLE_REPLY_BYTES: usize = 16 << 20;

/// A provider that speaks the OpenAI protocol. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct OpenAi {
    pub(crate) settings: Settings,
    pub(crate) transport: Transport,
}

impl OpenAi {
    /// Prepares the client; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Settings`] that names the setting which cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        Ok(Self { transport: Transport::new(&settings)?, settings })
    }

    /// The settings that the client was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn model_of(&self, request: &ChatRequest) -> Result<String, Error> {
        match &request.model {
            Some(model) => Ok(model.clone()),
            None if self.settings.chat_model.is_empty() => Err(Error::Settings {
                key: "chat_model",
                reason: "is not set and the request names no model".to_owned(),
            }),
            None => Ok(self.settings.chat_model.clone()),
        }
    }
}

impl ChatModel for OpenAi {
    async fn stream(&self, request: ChatRequest) -> Result<ChatStream, Error> {
        let model = self.model_of(&request)?;
        let prices = self.settings.prices_of(&model);
        let output_cap = budget::output_cap(&request, &model, prices)?;
        let terms = Terms {
            prompt_tokens: budget::estimate_prompt_tokens(&request.messages),
            output_cap,
            prices,
            idle_timeout: self.settings.idle_timeout,
            deadline: Deadline::start(self.settings.total_timeout, request.limits.deadline),
            cancellation: request.cancellation,
            model,
        };
        let (max_tokens, max_completion_tokens) = match self.settings.output_cap_field {
            OutputCapField::MaxTokens => (output_cap, None),
            OutputCapField::MaxCompletionTokens => (None, output_cap),
        };
        let body = wire::ChatBody {
            model: &terms.model,
            messages: &request.messages,
            stream: true,
            stream_options: wire::StreamOptions { include_usage: true },
            temperature: request.temperature,
            max_tokens,
            max_completion_tokens,
        };
        let response = self.transport.post("/chat/completions", &body, &terms.deadline, &terms.cancellation).await?;
        let key = self.transport.key().cloned();
        Ok(ChatStream::new(frames_of(response, key), terms))
    }
}

fn frames_of(response: Response, key: Option<Secret>) -> BoxStream<'static, Result<Frame, Error>> {
    let content_type = response.headers().get(CONTENT_TYPE);
    let is_whole = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if is_whole {
        return stream::once(whole_reply(response, key)).boxed();
    }
    let events = Events {
        body: response.bytes_stream().boxed(),
        parser: sse::Parser::default(),
        ready: VecDeque::new(),
        ended: false,
        key,
    };
    stream::unfold(events, |mut events| async move {
        let frame = events.next().await?;
        Some((frame, events))
    })
    .boxed()
}

async fn whole_reply(response: Response, key: Option<Secret>) -> Result<Frame, Error> {
    let body = http::read_body(response, MAX_WHOLE_REPLY_BYTES).await?;
    let frame = wire::read_frame(&String::from_utf8_lossy(&body), key.as_ref())?;
    if frame.finish_reason.is_none() {
        return Err(Error::bad_reply("the reply has no finished answer"));
    }
    Ok(Frame { done: true, ..frame })
}

/// Turns the bytes of a streamed reply into frames.
struct Events<B> {
    body: B,
    parser: sse::Parser,
    ready: VecDeque<Result<Frame, Error>>,
    ended: bool,
    key: Option<Secret>,
}

impl<B, Bytes> Events<B>
where
    B: futures_util::Stream<Item = Result<Bytes, reqwest::Error>> + Unpin,
    Bytes: AsRef<[u8]>,
{
    async fn next(&mut self) -> Option<Result<Frame, Error>> {
        if let Some(frame) = self.ready.pop_front() {
            return Some(frame);
        }
        if self.ended {
            return None;
        }
        match self.body.next().await {
            Some(Ok(bytes)) => match self.parser.push(bytes.as_ref()) {
                Ok(events) => self.read(events),
                Err(sse::TooLong) => return Some(Err(Error::bad_reply("an event is too long"))),
            },
            Some(Err(error)) => {
                self.ended = true;
                return Some(Err(Error::unreachable(error)));
            }
            None => {
                self.ended = true;
                let last = self.parser.finish();
                self.read(last);
                return self.ready.pop_front();
            }
        }
        // Bytes that complete no event, as comments do, still show that the provider is alive.
        Some(self.ready.pop_front().unwrap_or_else(|| Ok(Frame::default())))
    }

    fn read(&mut self, events: impl IntoIterator<Item = String>) {
        for event in events {
            self.ready.push_back(wire::read_frame(&event, self.key.as_ref()));
        }
    }
}
