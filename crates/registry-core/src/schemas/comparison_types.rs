//! The kinds of JSON values that a schema may accept.

use std::cell::Cell;

use serde_json::Value;

use super::dialect;

/// A set of kinds; numbers are split into whole ones and others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u8);

/// Subschemas that are looked at, and how deep; beyond that every kind counts as possible.
const MOST_SCHEMAS: u32 = 2000;
const DEEPEST: u8 = 32;

impl Types {
    pub(super) const OBJECT: Self = Self(1);
    pub(super) const ARRAY: Self = Self(2);
    pub(super) const STRING: Self = Self(4);
    pub(super) const INTEGER: Self = Self(8);
    pub(super) const NUMBER: Self = Self(8 | 16);
    const BOOLEAN: Self = Self(32);
    const NULL: Self = Self(64);
    const NONE: Self = Self(0);
    const ALL: Self = Self(127);
    const NAMES: [(&'static str, Self); 7] = [
        ("object", Self::OBJECT),
        ("array", Self::ARRAY),
        ("string", Self::STRING),
        ("number", Self::NUMBER),
        ("integer", Self::INTEGER),
        ("boolean", Self::BOOLEAN),
        ("null", Self::NULL),
    ];

    /// What the keyword `type` says.
    pub(super) fn declared(value: &Value) -> Self {
        let named =
            |name: &str| Self::NAMES.iter().find(|(known, _)| *known == name).map_or(Self::NONE, |(_, set)| *set);
        match value {
            Value::String(name) => named(name),
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).map(named).fold(Self::NONE, |all, one| Self(all.0 | one.0))
            }
            _ => Self::ALL,
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            // 1.0 is whole and not written so, which counts as both
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// Every kind of which the schema may accept a value, and perhaps some of which it does not.
    pub(super) fn possible(root: &Value, schema: &Value) -> Self {
        Self::possible_within(root, schema, &Cell::new(MOST_SCHEMAS), DEEPEST)
    }

    fn possible_within(root: &Value, schema: &Value, left: &Cell<u32>, deeper: u8) -> Self {
        left.set(left.get().saturating_sub(1));
        let object = match schema {
            Value::Bool(false) => return Self::NONE,
            Value::Object(object) if left.get() > 0 && deeper > 0 => object,
            _ => return Self::ALL,
        };
        let below = |schema: &Value| Self::possible_within(root, schema, left, deeper - 1);
        let mut types = object.get("type").map_or(Self::ALL, Self::declared);
        if let Some(value) = object.get("const") {
            types = types.and(Self::of_value(value));
        }
        let any_of = |values: &Vec<Value>, each: &dyn Fn(&Value) -> Self| {
            values.iter().fold(Self::NONE, |all, value| Self(all.0 | each(value).0))
        };
        if let Some(Value::Array(values)) = object.get("enum") {
            types = types.and(any_of(values, &Self::of_value));
        }
        if let Some(target) = object.get("$ref").and_then(|it| dialect::target(root, it.as_str()?)) {
            types = types.and(below(target));
        }
        if let Some(Value::Array(all)) = object.get("allOf") {
            types = all.iter().fold(types, |types, schema| types.and(below(schema)));
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(Value::Array(some)) = object.get(name) {
                types = types.and(any_of(some, &below));
            }
        }
        types
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(super) const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// For people: `object`, or `integer or null`.
    pub(super) fn words(self) -> String {
        if self == Self::ALL {
            return "anything".to_owned();
        }
        let named =
            |(_, set): &&(&str, Self)| set.is_within(self) && !(*set == Self::INTEGER && Self::NUMBER.is_within(self));
        let names: Vec<&str> = Self::NAMES.iter().filter(named).map(|(name, _)| *name).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(" or ") }
    }
}
