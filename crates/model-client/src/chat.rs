//! What a caller asks of a chat model and what it gets back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, stream::ChatStream};

/// Anything that answers a conversation piece by piece.
pub trait ChatModel: Send + Sync {
    /// Starts an answer; dropping the future or the stream ends the call at the provider.
    ///
    /// # Errors
    /// Every kind of [`Error`]; those about limits come before anything is sent.
    fn stream(&self, request: ChatRequest) -> impl Future<Output = Result<ChatStream, Error>> + Send;

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// As [`ChatModel::stream`]; call that one where the cost of a broken answer must be booked.
    fn complete(&self, request: ChatRequest) -> impl Future<Output = Result<Completion, Error>> + Send {
        async move { self.stream(request).await?.finish().await }
    }
}

/// A conversation to be continued, and how far the answer may go.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Exactly this model; absent: the default of the settings.
    pub model: Option<String>,
    /// Randomness; absent: the provider's default.
    pub temperature: Option<f32>,
    /// Longest answer that is of use, in tokens.
    pub max_output_tokens: Option<u32>,
    /// What the assignment leaves for this call.
    pub limits: Limits,
    /// Ends the call when it fires; the default never does.
    pub cancellation: CancellationToken,
}

impl ChatRequest {
    /// A request without limits.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What a call may use up; absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of prompt and answer together.
    pub max_tokens: Option<u64>,
    /// Money for prompt and answer together, in billionths of a US dollar.
    pub max_cost_nano_usd: Option<u64>,
    /// Time from the call to the end of the answer.
    pub deadline: Option<Duration>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Instructions to the model.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::of(Role::System, content)
    }

    /// What the user says.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::of(Role::User, content)
    }

    /// What the model said before.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::of(Role::Assistant, content)
    }

    fn of(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one who sets the rules.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// Tokens used by a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer, reasoning included.
    pub output_tokens: u64,
}

impl Usage {
    /// Tokens of prompt and answer together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// The provider stopped at the output cap.
    Length,
    /// This client cut the answer off at the output cap, which the provider ignored.
    CutOff,
    /// The call has not ended, or broke.
    Unfinished,
    /// The provider's own word for anything else, as in `content_filter`.
    Other(String),
}

impl FinishReason {
    pub(crate) fn from_wire(word: String) -> Self {
        match word.as_str() {
            "stop" => Self::Stop,
            "length" => Self::Length,
            _ => Self::Other(word),
        }
    }
}

/// An answer and what it cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The whole answer.
    pub text: String,
    /// The model that was asked.
    pub model_requested: String,
    /// The model that answered, where the provider says so.
    pub model_served: Option<String>,
    /// Tokens used.
    pub usage: Usage,
    /// True when the provider sent no usage and the tokens are computed from the text.
    pub usage_estimated: bool,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// What the tokens cost in billionths of a US dollar; absent: no price is known.
    pub cost_nano_usd: Option<u64>,
}

impl Completion {
    /// Whether another model answered than the one asked for.
    /// A dated release of the same name (`gpt-4o-2024-08-06` for `gpt-4o`) is not another model.
    #[must_use]
    pub fn model_mismatch(&self) -> bool {
        let Some(served) = &self.model_served else {
            return false;
        };
        let Some(suffix) = served.strip_prefix(&self.model_requested) else {
            return true;
        };
        let is_date =
            suffix.len() > 1 && suffix.starts_with('-') && suffix.chars().all(|c| c == '-' || c.is_ascii_digit());
        !suffix.is_empty() && !is_date
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_name_is_a_mismatch() {
        check(None, false);
        check(Some("gpt-4o"), false);
        check(Some("gpt-4o-2024-08-06"), false);
        check(Some("gpt-4o-mini"), true);
        check(Some("gpt-4o-"), true);
        check(Some("llama3"), true);
    }

    fn check(served: Option<&str>, mismatch: bool) {
        let completion = Completion {
            text: String::new(),
            model_requested: "gpt-4o".to_owned(),
            model_served: served.map(str::to_owned),
            usage: Usage::default(),
            usage_estimated: false,
            finish_reason: FinishReason::Stop,
            cost_nano_usd: None,
        };
        assert_eq!(completion.model_mismatch(), mismatch, "{served:?}");
    }
}
