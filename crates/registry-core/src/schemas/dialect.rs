//! The JSON Schema that is taken: draft 2020-12 within one document, so that two schemas can be compared.

use serde_json::{Map, Value};

use super::document::NotASchema;

/// The one dialect.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Deeper schemas are not written by hand, and recursion costs stack.
const DEEPEST: usize = 48;
/// More subschemas than this are not compared in reasonable time.
const MOST_SUBSCHEMAS: usize = 5000;

/// Keywords that hold one subschema.
pub(super) const ONE: [&str; 11] = [
    "additionalProperties",
    "items",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contentSchema",
];
/// Keywords that hold a list of subschemas.
pub(super) const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords that hold subschemas by name.
pub(super) const MAPS: [&str; 4] = ["properties", "patternProperties", "dependentSchemas", "$defs"];
/// Keywords whose subschemas judge the very value that their schema judges.
const IN_PLACE_ONE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords that are not taken, each with what to do instead.
const REFUSED: [(&str, &str); 9] = [
    ("$anchor", "refer to #/$defs/<name>"),
    ("$dynamicAnchor", "refer to #/$defs/<name>"),
    ("$dynamicRef", "use $ref to #/$defs/<name>"),
    ("$recursiveRef", "use $ref to #/$defs/<name>"),
    ("$vocabulary", "it is for dialects, not for schemas"),
    ("definitions", "draft 2020-12 calls it $defs"),
    ("dependencies", "draft 2020-12 calls it dependentRequired and dependentSchemas"),
    ("additionalItems", "draft 2020-12 calls it items, beside prefixItems"),
    ("divisibleBy", "draft 2020-12 calls it multipleOf"),
];

/// Refuses what is outside of the dialect, with the place and what to do about it.
pub(super) fn admit(root: &Map<String, Value>) -> Result<(), NotASchema> {
    if let Some(dialect) = root.get("$schema")
        && dialect.as_str().map(|uri| uri.trim_end_matches('#')) != Some(DIALECT)
    {
        return Err(NotASchema::new("/$schema", format!("only {DIALECT} is taken")));
    }
    let mut walk = Walk { root, seen: 0 };
    walk.object(root, "", 0)?;
    for name in definitions(root).into_iter().flat_map(Map::keys) {
        walk.no_circle(name)?;
    }
    walk.no_circle_from_root()
}

/// The schemas that others refer to.
pub(super) fn definitions(root: &Map<String, Value>) -> Option<&Map<String, Value>> {
    root.get("$defs").and_then(Value::as_object)
}

/// What `$ref` leads to; none for a reference that is not admitted.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if reference == "#" {
        return Some(root);
    }
    let name = unescaped(reference.strip_prefix("#/$defs/")?);
    definitions(root.as_object()?)?.get(&name)
}

/// A name as one step of a JSON pointer (RFC 6901).
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn unescaped(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

struct Walk<'a> {
    root: &'a Map<String, Value>,
    seen: usize,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) -> Result<(), NotASchema> {
        match schema {
            Value::Object(object) => self.object(object, path, depth),
            Value::Bool(_) => Ok(()),
            _ => Err(NotASchema::new(path, "a schema is an object or a boolean")),
        }
    }

    fn object(&mut self, object: &'a Map<String, Value>, path: &str, depth: usize) -> Result<(), NotASchema> {
        self.seen += 1;
        if depth > DEEPEST || self.seen > MOST_SUBSCHEMAS {
            let limits = format!("at most {MOST_SUBSCHEMAS} subschemas, {DEEPEST} deep, are taken");
            return Err(NotASchema::new(path, limits));
        }
        self.keywords(object, path)?;
        for name in ONE {
            if let Some(schema) = object.get(name) {
                self.schema(schema, &format!("{path}/{name}"), depth + 1)?;
            }
        }
        for name in LISTS {
            for (index, schema) in object.get(name).and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.schema(schema, &format!("{path}/{name}/{index}"), depth + 1)?;
            }
        }
        for name in MAPS {
            for (key, schema) in object.get(name).and_then(Value::as_object).into_iter().flatten() {
                self.schema(schema, &format!("{path}/{name}/{}", escaped(key)), depth + 1)?;
            }
        }
        Ok(())
    }

    fn keywords(&self, object: &Map<String, Value>, path: &str) -> Result<(), NotASchema> {
        for (name, instead) in REFUSED {
            if object.contains_key(name) {
                return Err(NotASchema::new(&format!("{path}/{name}"), format!("not taken here: {instead}")));
            }
        }
        if !path.is_empty() {
            for name in ["$schema", "$id", "$defs"] {
                if object.contains_key(name) {
                    return Err(NotASchema::new(&format!("{path}/{name}"), "stands at the root only"));
                }
            }
        }
        let Some(reference) = object.get("$ref") else { return Ok(()) };
        let named = reference.as_str().filter(|reference| !reference.contains('%'));
        let name = named.and_then(|reference| reference.strip_prefix("#/$defs/")).map(unescaped);
        let is_there = named == Some("#")
            || name.is_some_and(|name| definitions(self.root).is_some_and(|all| all.contains_key(&name)));
        if is_there {
            return Ok(());
        }
        let rule = "a reference is # or #/$defs/<name> of something that is there; nothing is fetched from elsewhere";
        Err(NotASchema::new(&format!("{path}/$ref"), rule))
    }

    /// A schema that is judged by judging itself first would never be judged.
    fn no_circle(&self, name: &str) -> Result<(), NotASchema> {
        let start = definitions(self.root).and_then(|all| all.get(name));
        let path = format!("/$defs/{}", escaped(name));
        start.map_or(Ok(()), |start| self.no_circle_below(start, &path))
    }

    fn no_circle_from_root(&self) -> Result<(), NotASchema> {
        let mut open = Vec::new();
        in_place(self.root, &mut open);
        if open.contains(&"#") {
            return Err(NotASchema::new("", "refers to itself without a step into the value"));
        }
        Ok(())
    }

    fn no_circle_below(&self, start: &'a Value, path: &str) -> Result<(), NotASchema> {
        let mut open: Vec<&'a str> = Vec::new();
        start.as_object().into_iter().for_each(|object| in_place(object, &mut open));
        let mut done: Vec<&'a str> = Vec::new();
        while let Some(reference) = open.pop() {
            if done.contains(&reference) {
                continue;
            }
            done.push(reference);
            let next = match reference {
                "#" => Some(self.root),
                _ => {
                    let name = reference.strip_prefix("#/$defs/").map(unescaped).unwrap_or_default();
                    let next = definitions(self.root).and_then(|all| all.get(&name));
                    if next.is_some_and(|next| std::ptr::eq(next, start)) {
                        return Err(NotASchema::new(path, "refers to itself without a step into the value"));
                    }
                    next.and_then(Value::as_object)
                }
            };
            next.into_iter().for_each(|object| in_place(object, &mut open));
        }
        Ok(())
    }
}

/// The references that judge the same value as this schema.
fn in_place<'a>(object: &'a Map<String, Value>, found: &mut Vec<&'a str>) {
    found.extend(object.get("$ref").and_then(Value::as_str));
    let ones = IN_PLACE_ONE.iter().filter_map(|name| object.get(*name));
    let listed = IN_PLACE_LISTS.iter().filter_map(|name| object.get(*name)?.as_array()).flatten();
    let mapped = object.get("dependentSchemas").and_then(Value::as_object).into_iter().flat_map(Map::values);
    for schema in ones.chain(listed).chain(mapped).filter_map(Value::as_object) {
        in_place(schema, found);
    }
}
