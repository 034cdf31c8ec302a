//! Bodies: read within a size and a time, parsed, and held to what the database can store.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use cogo_service_runtime::{ApiError, is_json};
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::problems;

/// As much as a message may hold.
const MAX_BYTES: usize = 1024 * 1024;
/// A sender that is slower than this holds a connection for nothing.
pub(crate) const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// Half of what the JSON parser of any process on the way takes, since messages wrap what they carry.
const MAX_DEPTH: usize = 64;
/// Characters of a place that a problem names.
const SHOWN: usize = 200;

/// The JSON value of a request, if it arrives in time.
pub(crate) async fn read(headers: &HeaderMap, body: Body, within: Duration) -> Result<Value, ApiError> {
    if !is_json(headers) {
        let given = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("unreadable"));
        return Err(problems::not_json_type(given));
    }
    let bytes = read_bytes(body, MAX_BYTES, within, problems::too_large).await?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| problems::malformed(error.to_string()))?;
    match flaw(&value) {
        Some(flaw) => Err(problems::malformed(flaw)),
        None => Ok(value),
    }
}

/// The bytes of a request, at most so many, if they arrive in time.
pub(crate) async fn read_bytes(
    body: Body,
    most: usize,
    within: Duration,
    too_large: fn() -> ApiError,
) -> Result<Vec<u8>, ApiError> {
    let collected = tokio::time::timeout(within, collect(body, most, too_large)).await;
    collected.map_err(|_elapsed| problems::too_slow(within))?
}

async fn collect(body: Body, most: usize, too_large: fn() -> ApiError) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) =
        stream.try_next().await.map_err(|_broken| ApiError::bad_request("The body could not be read"))?
    {
        if bytes.len() + chunk.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Why a value cannot be stored.
enum Flaw<'v> {
    TooDeep,
    /// With the way there, innermost step first.
    Nul(Vec<Step<'v>>),
}

enum Step<'v> {
    At(usize),
    Named(&'v str),
}

/// Why the value cannot be stored, with the JSON pointer of the place.
fn flaw(root: &Value) -> Option<String> {
    let pointer = match find(root, 0)? {
        Flaw::TooDeep => return Some(format!("Nested deeper than {MAX_DEPTH} levels")),
        Flaw::Nul(way) => way.iter().rev().fold(String::new(), |pointer, step| match step {
            Step::At(place) => format!("{pointer}/{place}"),
            Step::Named(name) => {
                let name: String = name.chars().take(SHOWN).collect();
                format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1").replace('\0', "\u{fffd}"))
            }
        }),
    };
    let shown: String = pointer.chars().take(SHOWN).collect();
    Some(format!("The text at {shown} holds a NUL character, which cannot be stored"))
}

/// Goes at most one level deeper than is allowed. The way is put together on the way back from a flaw only: a name
/// may be as long as the body, and have as many values below it.
fn find(value: &Value, depth: usize) -> Option<Flaw<'_>> {
    if depth > MAX_DEPTH {
        return Some(Flaw::TooDeep);
    }
    let within = |step, value| {
        find(value, depth + 1).map(|flaw| match flaw {
            Flaw::TooDeep => Flaw::TooDeep,
            Flaw::Nul(mut way) => {
                way.push(step);
                Flaw::Nul(way)
            }
        })
    };
    match value {
        Value::String(text) => text.contains('\0').then(|| Flaw::Nul(Vec::new())),
        Value::Array(items) => items.iter().enumerate().find_map(|(place, item)| within(Step::At(place), item)),
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            if name.contains('\0') {
                return Some(Flaw::Nul(vec![Step::Named(name)]));
            }
            within(Step::Named(name), field)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, http::HeaderValue};
    use futures_util::stream;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn body_that_does_not_arrive_is_given_up() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = read(&headers, body, Duration::from_millis(20)).await.unwrap_err().0;
        assert_eq!((problem.status, problem.code.as_str()), (408, "body-too-slow"));
    }

    #[test]
    fn nul_characters_are_found_where_they_stand() {
        for (value, place) in [
            (json!({"payload": {"list": ["a", "b\0"]}}), "/payload/list/1 "),
            (json!({"a/b": {"~": "\0"}}), "/a~1b/~0 "),
            (json!({"bad\0name": 1}), "/bad\u{fffd}name "),
        ] {
            assert!(flaw(&value).unwrap().contains(place), "{:?}", flaw(&value));
        }
        assert_eq!(flaw(&json!({"a": ["b", {"c": "d"}], "e": null})), None);
    }

    #[tokio::test]
    async fn long_name_over_many_values_costs_no_more_than_the_body() {
        let name = "n".repeat(500_000);
        let text = format!("{{\"{name}\": [{}0]}}", "0,".repeat(200_000));
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let started = std::time::Instant::now();
        assert!(read(&headers, Body::from(text.clone()), ARRIVES_WITHIN).await.is_ok());
        let flawed = text.replace("0]", "\"\\u0000\"]");
        let problem = read(&headers, Body::from(flawed), ARRIVES_WITHIN).await.unwrap_err().0;
        assert!(problem.detail.contains("/nnn") && problem.detail.len() < 400, "{}", problem.detail);
        // a copy of the name for each value would be a hundred gigabytes
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(flaw(&nested(MAX_DEPTH)), None);
        assert!(flaw(&nested(MAX_DEPTH + 1)).unwrap().contains("64 levels"));
    }
}
