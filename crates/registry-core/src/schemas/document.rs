//! A schema that was read and found usable.

use cogo_contracts::SchemaSubject;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value};

use super::{
    compiled::held_against,
    dialect::{self, LISTS, MAPS, ONE},
    refusal::SchemaRefusal,
};

/// What the database stores of one schema.
const MOST_BYTES: usize = 256 * 1024;

/// Why something cannot be registered as a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a schema that can be registered: {}: {reason}", place(path))]
pub struct NotASchema {
    /// Where in the schema, as a JSON pointer; empty for its root.
    pub path: String,
    /// What is wrong there, for people.
    pub reason: String,
}

impl NotASchema {
    pub(super) fn new(path: &str, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }
}

fn place(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// A JSON Schema of draft 2020-12 that is complete in itself: it refers to nothing outside, and can be compared.
///
/// A required field that has a `default` may be absent, since whoever reads fills it in.
#[derive(Debug, Clone, PartialEq)]
pub struct SchemaDocument {
    document: Value,
}

impl SchemaDocument {
    /// Reads a schema.
    ///
    /// # Errors
    /// Where it is not one, or uses what is not taken: references to other documents, keywords of older drafts, formats
    /// or patterns that nobody checks, defaults that do not fit.
    pub fn parse(document: Value) -> Result<Self, NotASchema> {
        let Value::Object(root) = &document else {
            return Err(NotASchema::new("", "a schema of a payload is a JSON object"));
        };
        if document.to_string().len() > MOST_BYTES {
            return Err(NotASchema::new("", "a schema has at most 256 KiB"));
        }
        if document.to_string().contains("\\u0000") {
            return Err(NotASchema::new("", "the database stores no NUL character"));
        }
        dialect::admit(root)?;
        compiled(&document)?;
        let document = Self { document };
        compiled(&document.relaxed())?;
        document.defaults_fit()?;
        Ok(document)
    }

    /// The schema as it was given.
    #[must_use]
    pub fn as_value(&self) -> &Value {
        &self.document
    }

    /// Holds a payload or result against the schema, as version `version` of `subject`.
    ///
    /// # Errors
    /// The places at which it does not fit.
    ///
    /// # Panics
    /// Never: what was read as a schema has been compiled once already.
    pub fn check(&self, subject: &SchemaSubject, version: i32, body: &Value) -> Result<(), SchemaRefusal> {
        let validator = compiled(&self.relaxed()).expect("it was compiled when it was read");
        held_against(&validator, subject, version, body)
    }

    /// What payloads are held against: the schema without the demand for fields that have a default.
    pub(super) fn relaxed(&self) -> Value {
        relaxed(&self.document)
    }

    fn defaults_fit(&self) -> Result<(), NotASchema> {
        let root = self.relaxed();
        let mut open = vec![(String::new(), &root)];
        while let Some((path, schema)) = open.pop() {
            let Some(object) = schema.as_object() else { continue };
            if let Some(default) = object.get("default")
                && let Some(validator) = subschema(&root, schema)
                && !validator.is_valid(default)
            {
                return Err(NotASchema::new(&format!("{path}/default"), "does not fit its own schema"));
            }
            for name in ONE {
                open.extend(object.get(name).map(|schema| (format!("{path}/{name}"), schema)));
            }
            for name in LISTS {
                let list = object.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
                open.extend(list.map(|(index, schema)| (format!("{path}/{name}/{index}"), schema)));
            }
            for name in MAPS {
                let map = object.get(name).and_then(Value::as_object).into_iter().flatten();
                open.extend(map.map(|(key, schema)| (format!("{path}/{name}/{}", dialect::escaped(key)), schema)));
            }
        }
        Ok(())
    }
}

/// A validator of a whole document.
pub(super) fn compiled(document: &Value) -> Result<Validator, NotASchema> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        // no backtracking: a hostile payload must not make a pattern run for ever
        .with_pattern_options(PatternOptions::regex())
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        .build(document)
        .map_err(|error| NotASchema::new(error.instance_path().as_str(), error.to_string()))
}

/// A validator of a part of a document; none where the part refers to the root, which it would then be itself.
pub(super) fn subschema(root: &Value, part: &Value) -> Option<Validator> {
    let alone = match part {
        Value::Object(object) => {
            let mut alone = object.clone();
            if let Some(definitions) = root.get("$defs") {
                alone.insert("$defs".to_owned(), definitions.clone());
            }
            Value::Object(alone)
        }
        other => other.clone(),
    };
    if alone.to_string().contains(r##""$ref":"#""##) && !std::ptr::eq(root, part) {
        return None;
    }
    compiled(&alone).ok()
}

fn relaxed(schema: &Value) -> Value {
    let Value::Object(object) = schema else { return schema.clone() };
    let mut relaxed: Map<String, Value> = object.clone();
    // below a negation, laxer would be stricter
    for name in ONE.iter().filter(|name| !["not", "if", "contains"].contains(name)) {
        if let Some(schema) = relaxed.get_mut(*name) {
            *schema = self::relaxed(schema);
        }
    }
    for name in LISTS {
        for schema in relaxed.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
            *schema = self::relaxed(schema);
        }
    }
    for name in MAPS {
        for (_, schema) in relaxed.get_mut(name).and_then(Value::as_object_mut).into_iter().flatten() {
            *schema = self::relaxed(schema);
        }
    }
    let has_default = |name: &Value| {
        let field = object.get("properties").and_then(|fields| fields.get(name.as_str()?));
        field.is_some_and(|field| field.get("default").is_some())
    };
    if let Some(required) = relaxed.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !has_default(name));
    }
    Value::Object(relaxed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_taken_is_refused_with_its_place() {
        for (document, path, word) in [
            (json!(true), "", "object"),
            (json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "/$schema", "2020-12"),
            (json!({"type": "objekt"}), "/type", ""),
            (json!({"properties": {"a": {"minimum": "x"}}}), "/properties/a/minimum", ""),
            (json!({"properties": {"a": {"$ref": "https://example.org/a.json"}}}), "/properties/a/$ref", "fetched"),
            (json!({"properties": {"a": {"$ref": "#/$defs/b"}}}), "/properties/a/$ref", "is there"),
            (json!({"definitions": {}}), "/definitions", "$defs"),
            (json!({"properties": {"a": {"$id": "urn:x"}}}), "/properties/a/$id", "root"),
            (json!({"$ref": "#"}), "", "itself"),
            (
                json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}),
                "/$defs/a",
                "itself",
            ),
            (json!({"properties": {"a": {"pattern": "(?=x)y"}}}), "/properties/a/pattern", ""),
            (json!({"properties": {"a": {"format": "zip-code"}}}), "/properties/a/format", ""),
            (json!({"properties": {"a": {"type": "integer", "default": "x"}}}), "/properties/a/default", "fit"),
        ] {
            let refused = SchemaDocument::parse(document.clone()).expect_err(&document.to_string());
            assert_eq!(refused.path, path, "{document}: {refused}");
            assert!(refused.reason.contains(word), "{document}: {refused}");
        }
    }

    #[test]
    fn recursion_through_the_value_is_fine() {
        for document in [
            json!({"type": "object", "properties": {"next": {"$ref": "#"}}}),
            json!({"$defs": {"node": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
                   "$ref": "#/$defs/node"}),
        ] {
            SchemaDocument::parse(document).unwrap();
        }
    }

    #[test]
    fn a_required_field_with_a_default_may_be_absent() {
        let document = SchemaDocument::parse(json!({
            "type": "object", "required": ["a", "b"],
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 3}},
            "not": {"required": ["c"], "properties": {"c": {"default": 1}}}}))
        .unwrap();
        let validator = compiled(&document.relaxed()).unwrap();
        assert!(validator.is_valid(&json!({"a": 1})));
        assert!(!validator.is_valid(&json!({"b": 1})));
        assert!(!validator.is_valid(&json!({"a": 1, "b": "x"})));
        assert!(!validator.is_valid(&json!({"a": 1, "c": 1})), "negations are left as they are");
    }
}
