//! The JSON of the OpenAI-compatible protocol, and what its errors mean.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    chat::{FinishReason, Message, Usage},
    error::Error,
    settings::Secret,
    stream::Frame,
};

/// Longest text of a provider's error that is passed on, in characters.
const MAX_ERROR_CHARS: usize = 300;

#[derive(Debug, Serialize)]
pub(crate) struct ChatBody<'a> {
    pub(crate) model: &'a str,
    pub(crate) messages: &'a [Message],
    pub(crate) stream: bool,
    pub(crate) stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_completion_tokens: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingBody<'a> {
    pub(crate) model: &'a str,
    pub(crate) input: &'a [String],
    pub(crate) encoding_format: &'a str,
}

#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingReply {
    pub(crate) data: Vec<EmbeddingItem>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingItem {
    pub(crate) index: usize,
    pub(crate) embedding: Vec<f32>,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<WireError>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    // Whole replies call it `message`: some gateways ignore `stream`.
    #[serde(alias = "message")]
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
    // Two names for the same: thoughts that are billed as output but are not the answer.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WireError {
    Text(String),
    Object { message: Option<String>, code: Option<Value> },
}

/// Reads one event of a stream, or a whole reply that came without streaming.
pub(crate) fn read_frame(data: &str, key: Option<&Secret>) -> Result<Frame, Error> {
    if data.trim() == "[DONE]" {
        return Ok(Frame { done: true, ..Frame::default() });
    }
    let chunk: Chunk = serde_json::from_str(data)
        .map_err(|error| Error::bad_reply(format!("not a chat chunk ({:?})", error.classify())))?;
    if let Some(error) = chunk.error {
        return Err(stream_error(error, key));
    }
    let mut frame = Frame {
        model: chunk.model.filter(|model| !model.is_empty()),
        usage: chunk.usage.and_then(read_usage),
        ..Frame::default()
    };
    if let Some(choice) = chunk.choices.into_iter().flatten().next() {
        frame.finish_reason = choice.finish_reason.map(FinishReason::from_wire);
        if let Some(delta) = choice.delta {
            let thoughts = [delta.reasoning, delta.reasoning_content];
            frame.hidden_bytes = thoughts.iter().flatten().map(String::len).max().unwrap_or(0);
            frame.text = delta.content.unwrap_or_default();
        }
    }
    Ok(frame)
}

fn read_usage(usage: WireUsage) -> Option<Usage> {
    Some(Usage { input_tokens: usage.prompt_tokens?, output_tokens: usage.completion_tokens.unwrap_or(0) })
}

fn stream_error(error: WireError, key: Option<&Secret>) -> Error {
    let (text, code) = match error {
        WireError::Text(text) => (text, None),
        WireError::Object { message, code } => (message.unwrap_or_default(), code),
    };
    let status = code
        .and_then(|code| match code {
            Value::Number(number) => number.as_u64(),
            Value::String(word) => word.parse().ok(),
            _ => None,
        })
        .and_then(|number| u16::try_from(number).ok())
        .filter(|status| (400..600).contains(status))
        .unwrap_or(200);
    error_of_status(status, None, &text, key)
}

/// The error that an HTTP status stands for; `body` is what the provider sent with it.
pub(crate) fn error_of_status(status: u16, retry_after: Option<Duration>, body: &str, key: Option<&Secret>) -> Error {
    match status {
        401 | 403 => Error::Unauthorized { status },
        429 => Error::RateLimited { retry_after },
        _ => Error::Rejected { status, text: safe_text(&message_of(body), key) },
    }
}

/// Servers name their message differently; what is not JSON is taken as it is.
fn message_of(body: &str) -> String {
    let Ok(json) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    let places = ["/error/message", "/error", "/message", "/detail"];
    let message = places.iter().filter_map(|place| json.pointer(place)).find_map(Value::as_str);
    message.map_or_else(|| body.to_owned(), str::to_owned)
}

fn safe_text(text: &str, key: Option<&Secret>) -> String {
    let key = key.map(Secret::expose).filter(|key| !key.is_empty());
    let without_key = key.map_or_else(|| text.to_owned(), |key| text.replace(key, "***"));
    without_key.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_short_single_line_and_without_the_key() {
        let key = Secret::new("sk-1");
        let body = format!(r#"{{"error": {{"message": "bad\nkey sk-1 {}"}}}}"#, "x".repeat(999));
        let Error::Rejected { status: 400, text } = error_of_status(400, None, &body, Some(&key)) else {
            panic!("400 must be a rejection");
        };
        assert!(text.starts_with("bad key *** x"), "{text}");
        assert_eq!(text.chars().count(), MAX_ERROR_CHARS);
    }

    #[test]
    fn messages_are_found_in_the_shapes_of_several_servers() {
        for body in [
            r#"{"error": {"message": "gone"}}"#,
            r#"{"error": "gone"}"#,
            r#"{"message": "gone"}"#,
            r#"{"detail": "gone"}"#,
            "gone",
        ] {
            assert_eq!(message_of(body), "gone", "{body}");
        }
    }

    #[test]
    fn errors_inside_a_stream_keep_their_kind() {
        let read = |data: &str| read_frame(data, None).unwrap_err();
        assert!(matches!(
            read(r#"{"error": {"message": "slow down", "code": 429}}"#),
            Error::RateLimited { retry_after: None }
        ));
        assert!(matches!(
            read(r#"{"error": {"message": "no", "code": "invalid_api_key"}}"#),
            Error::Rejected { status: 200, .. }
        ));
        assert!(matches!(read(r#"{"error": "down"}"#), Error::Rejected { text, .. } if text == "down"));
    }

    #[test]
    fn thoughts_count_but_are_not_the_answer() {
        let frame = read_frame(r#"{"choices": [{"delta": {"reasoning": "hmmm", "reasoning_content": "hmmm"}}]}"#, None)
            .unwrap();
        assert_eq!((frame.text.as_str(), frame.hidden_bytes), ("", 4));
    }

    #[test]
    fn chunk_without_choices_is_read_and_other_json_is_not() {
        assert_eq!(read_frame(r#"{"choices": []}"#, None).unwrap(), Frame::default());
        assert_eq!(read_frame(r#"{"choices": null}"#, None).unwrap(), Frame::default());
        for data in ["{", "[1]", "\"x\"", r#"{"choices": 7}"#] {
            assert!(matches!(read_frame(data, None), Err(Error::BadReply { .. })), "{data}");
        }
    }
}
