//! A version of a schema, ready to be held against payloads.

use cogo_contracts::{Assignment, SchemaSubject};
use jsonschema::Validator;
use serde_json::Value;

use super::{
    document::{SchemaDocument, compiled},
    refusal::{NotChecked, SchemaRefusal, Violation},
};

/// Places at which a payload does not fit that are told one by one.
const MOST_VIOLATIONS: usize = 3;
/// Characters of what is told of one place.
const REASON: usize = 200;

/// A validator, or why there is none.
#[derive(Debug)]
pub(super) struct Compiled(Result<Validator, String>);

impl Compiled {
    pub(super) fn new(document: Value) -> Self {
        let validator = SchemaDocument::parse(document).and_then(|document| compiled(&document.relaxed()));
        Self(validator.map_err(|error| error.to_string()))
    }

    /// Holds a body against the schema. The stamp of the dispatcher is no part of the body.
    pub(super) fn check(&self, subject: &SchemaSubject, version: i32, body: &Value) -> Result<(), NotChecked> {
        let validator = self.0.as_ref().map_err(|reason| NotChecked::Unusable {
            subject: subject.clone(),
            version,
            reason: reason.clone(),
        })?;
        held_against(validator, subject, version, body).map_err(NotChecked::Refused)
    }
}

/// Every place at which a body does not fit, the first of them in words.
pub(super) fn held_against(
    validator: &Validator,
    subject: &SchemaSubject,
    version: i32,
    body: &Value,
) -> Result<(), SchemaRefusal> {
    let unstamped = body.as_object().filter(|fields| fields.contains_key(Assignment::KEY)).map(|fields| {
        let mut fields = fields.clone();
        fields.remove(Assignment::KEY);
        Value::Object(fields)
    });
    let body = unstamped.as_ref().unwrap_or(body);
    if validator.is_valid(body) {
        return Ok(());
    }
    let mut all = validator.iter_errors(body).map(|error| Violation {
        path: error.instance_path().to_string(),
        reason: error.masked().to_string().chars().take(REASON).collect(),
    });
    let violations: Vec<Violation> = all.by_ref().take(MOST_VIOLATIONS).collect();
    let more = all.count();
    Err(SchemaRefusal { subject: subject.clone(), version, violations, more })
}
