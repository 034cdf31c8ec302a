//! Bodies: read within a size and a time, parsed, and held to what the database can store.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use cogo_service_runtime::ApiError;
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::problems;

/// As much as a message may hold.
const MAX_BYTES: usize = 1024 * 1024;
/// A sender that is slower than this holds a connection for nothing.
pub(crate) const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// Half of what the JSON parser of any process on the way takes, since messages wrap what they carry.
const MAX_DEPTH: usize = 64;

/// The JSON value of a request, if it arrives in time.
pub(crate) async fn read(headers: &HeaderMap, body: Body, within: Duration) -> Result<Value, ApiError> {
    expect_json(headers)?;
    let bytes = tokio::time::timeout(within, collect(body)).await.map_err(|_elapsed| problems::too_slow(within))??;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| problems::malformed(error.to_string()))?;
    match flaw(&value) {
        Some(flaw) => Err(problems::malformed(flaw)),
        None => Ok(value),
    }
}

fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("unreadable"));
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json");
    if is_json { Ok(()) } else { Err(problems::not_json_type(given)) }
}

async fn collect(body: Body) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) =
        stream.try_next().await.map_err(|_broken| ApiError::bad_request("The body could not be read"))?
    {
        if bytes.len() + chunk.len() > MAX_BYTES {
            return Err(problems::too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Why the value cannot be stored, with the JSON pointer of the place.
fn flaw(root: &Value) -> Option<String> {
    let mut open = vec![(String::new(), 0, root)];
    while let Some((pointer, depth, value)) = open.pop() {
        if depth > MAX_DEPTH {
            return Some(format!("Nested deeper than {MAX_DEPTH} levels"));
        }
        match value {
            Value::String(text) if text.contains('\0') => return Some(nul_at(&pointer)),
            Value::Array(items) => {
                open.extend(items.iter().enumerate().map(|(at, item)| (format!("{pointer}/{at}"), depth + 1, item)));
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    let escaped = name.replace('~', "~0").replace('/', "~1");
                    if name.contains('\0') {
                        return Some(nul_at(&format!("{pointer}/{}", escaped.replace('\0', "\u{fffd}"))));
                    }
                    open.push((format!("{pointer}/{escaped}"), depth + 1, field));
                }
            }
            _ => {}
        }
    }
    None
}

fn nul_at(pointer: &str) -> String {
    let shown: String = pointer.chars().take(200).collect();
    format!("The text at {shown} holds a NUL character, which cannot be stored")
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

    #[test]
    fn nesting_is_limited() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(flaw(&nested(MAX_DEPTH)), None);
        assert!(flaw(&nested(MAX_DEPTH + 1)).unwrap().contains("64 levels"));
    }
}
