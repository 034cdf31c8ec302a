//! Errors as HTTP callers see them (RFC 9457, `application/problem+json`).

use serde::{Deserialize, Serialize};

/// A safe, stable description of what went wrong and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable name of the kind of problem, such as `unknown-intent`.
    pub code: String,
    /// The same for all problems of the kind.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened this time; never internal text.
    pub detail: String,
    /// What the caller can do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// Media type of the body.
    pub const MEDIA_TYPE: &'static str = "application/problem+json";

    /// A problem without a hint.
    #[must_use]
    pub fn new(status: u16, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self { code: code.to_owned(), title: title.to_owned(), status, detail: detail.into(), hint: None }
    }

    /// The same with a next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
