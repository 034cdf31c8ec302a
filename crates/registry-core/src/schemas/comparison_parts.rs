//! The parts of a schema that judge, and whether each follows from another schema's own keywords.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::{
    comparison::{Comparison, Gap, certain, refers, undecided},
    comparison_types::Types,
    dialect::{self, escaped},
};

/// Every keyword that can refuse a value; all others are notes.
pub(super) const JUDGES: [&str; 42] = [
    "$ref",
    "type",
    "enum",
    "const",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "properties",
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "required",
    "dependentRequired",
    "dependentSchemas",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "unevaluatedItems",
    "contains",
    "minContains",
    "maxContains",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
];
/// Keywords that are only compared as they stand, those that belong together in one group.
const WHOLE: [&[&str]; 10] = [
    &["not"],
    &["if", "then", "else"],
    &["contains", "minContains", "maxContains"],
    &["propertyNames"],
    &["dependentRequired"],
    &["dependentSchemas"],
    &["contentEncoding", "contentMediaType", "contentSchema"],
    &["unevaluatedProperties"],
    &["unevaluatedItems"],
    &["pattern"],
];
/// Bounds on counts, with the kind of value that they judge and whether a greater one is stricter.
const COUNTS: [(&str, Types, bool); 6] = [
    ("minLength", Types::STRING, true),
    ("maxLength", Types::STRING, false),
    ("minItems", Types::ARRAY, true),
    ("maxItems", Types::ARRAY, false),
    ("minProperties", Types::OBJECT, true),
    ("maxProperties", Types::OBJECT, false),
];
/// Bounds on numbers, each with its counterpart of the other kind.
const BOUNDS: [(&str, &str, bool, bool); 4] = [
    // keyword, counterpart, whether it is a lower bound, whether the counterpart suffices when equal
    ("minimum", "exclusiveMinimum", true, true),
    ("maximum", "exclusiveMaximum", false, true),
    ("exclusiveMinimum", "minimum", true, false),
    ("exclusiveMaximum", "maximum", false, false),
];

pub(super) static ANYTHING: Value = Value::Bool(true);

/// One demand of a schema.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Types(Types),
    Values(&'a Value),
    Required(&'a str),
    Count(&'static str, Types, bool, &'a Value),
    Bound(&'static str, &'static str, bool, bool, &'a Value),
    MultipleOf(&'a Value),
    Format(&'a Value),
    Unique,
    Fields(&'a Map<String, Value>),
    Items(&'a Map<String, Value>),
    AnyOf(&'a [Value]),
    OneOf(&'a [Value]),
    Whole(&'static [&'static str], &'a Map<String, Value>),
    Schema(&'a Value),
    Reference(&'a str),
}

/// The demands of a schema, which together are the schema.
pub(super) fn of(schema: &Map<String, Value>) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let get = |keyword: &str| schema.get(keyword);
    let list = |keyword: &str| get(keyword).and_then(Value::as_array).map(Vec::as_slice);
    parts.extend(get("type").map(|types| Part::Types(Types::declared(types))));
    parts.extend(get("const").map(Part::Values));
    parts.extend(get("enum").map(Part::Values));
    parts.extend(list("required").into_iter().flatten().filter_map(Value::as_str).map(Part::Required));
    for (keyword, kind, greater_is_stricter) in COUNTS {
        parts.extend(get(keyword).map(|value| Part::Count(keyword, kind, greater_is_stricter, value)));
    }
    for (keyword, counterpart, lower, suffices) in BOUNDS {
        parts.extend(get(keyword).map(|value| Part::Bound(keyword, counterpart, lower, suffices, value)));
    }
    parts.extend(get("multipleOf").map(Part::MultipleOf));
    parts.extend(get("format").map(Part::Format));
    parts.extend(get("uniqueItems").filter(|unique| **unique == Value::Bool(true)).map(|_| Part::Unique));
    if ["properties", "patternProperties", "additionalProperties"].iter().any(|keyword| schema.contains_key(*keyword)) {
        parts.push(Part::Fields(schema));
    }
    if ["items", "prefixItems"].iter().any(|keyword| schema.contains_key(*keyword)) {
        parts.push(Part::Items(schema));
    }
    parts.extend(get("$ref").and_then(Value::as_str).map(Part::Reference));
    parts.extend(list("allOf").into_iter().flatten().map(Part::Schema));
    parts.extend(list("anyOf").map(Part::AnyOf));
    parts.extend(list("oneOf").map(Part::OneOf));
    for group in WHOLE {
        if group.iter().any(|keyword| schema.contains_key(*keyword)) {
            parts.push(Part::Whole(group, schema));
        }
    }
    parts
}

impl<'a> Comparison<'a> {
    /// The gaps between the narrow schema's own keywords and one demand.
    pub(super) fn direct(&mut self, narrow: &'a Value, part: &Part<'a>, path: &str) -> Vec<Gap> {
        let possible = Types::possible(self.narrow, narrow);
        let empty = Map::new();
        let own = narrow.as_object().unwrap_or(&empty);
        match part {
            Part::Types(wide) if possible.is_within(*wide) => Vec::new(),
            Part::Types(wide) => {
                let (from, to) = self.told((possible, *wide), (*wide, possible));
                vec![certain(path, format!("type changed from {} to {}", from.words(), to.words()))]
            }
            Part::Values(values) => vec![certain(path, self.differs("list of values", None, values))],
            Part::Required(name) if !possible.meets(Types::OBJECT) || has_required(own, name) => Vec::new(),
            Part::Required(name) => {
                let change = match own.get("properties").and_then(|fields| fields.get(name)) {
                    Some(_) => self.told("field became required without default", "required field became optional"),
                    None => self.told("required field added without default", "required field removed"),
                };
                vec![certain(&format!("{path}/properties/{}", escaped(name)), change)]
            }
            Part::Count(keyword, kind, greater_is_stricter, wide) => {
                let stricter = if *greater_is_stricter { Ordering::Greater } else { Ordering::Less };
                let how = own.get(*keyword).and_then(|own| compare(own, wide));
                if !possible.meets(*kind) || how == Some(stricter) || how == Some(Ordering::Equal) {
                    return Vec::new();
                }
                vec![certain(path, self.differs(keyword, own.get(*keyword), wide))]
            }
            Part::Bound(keyword, counterpart, lower, suffices, wide) => {
                if !possible.meets(Types::NUMBER) || bound_follows(own, keyword, counterpart, *lower, *suffices, wide) {
                    return Vec::new();
                }
                vec![certain(path, self.differs(keyword, own.get(*keyword), wide))]
            }
            Part::MultipleOf(wide) => self.multiple_of(own, possible, wide, path),
            Part::Format(wide) if !possible.meets(Types::STRING) || own.get("format") == Some(*wide) => Vec::new(),
            Part::Format(wide) => match own.get("format") {
                None => vec![certain(path, self.differs("format", None, wide))],
                changed => vec![undecided(path, self.differs("format", changed, wide))],
            },
            Part::Unique if !possible.meets(Types::ARRAY) || has_no_pairs(own) => Vec::new(),
            Part::Unique => vec![certain(path, self.told("uniqueItems added", "uniqueItems removed"))],
            Part::Fields(wide) if possible.meets(Types::OBJECT) => self.fields(narrow, wide, path),
            Part::Items(wide) if possible.meets(Types::ARRAY) => self.items(narrow, wide, path),
            Part::Fields(_) | Part::Items(_) => Vec::new(),
            Part::AnyOf(alternatives) => self.one_of_them(narrow, alternatives, "anyOf", path),
            Part::OneOf(alternatives) => self.exactly_one_of_them(narrow, alternatives, path),
            Part::Whole(group, wide) => self.as_it_stands(own, group, wide, possible, path),
            Part::Schema(wide) => self.gaps(narrow, wide, path),
            Part::Reference(reference) => match dialect::target(self.wide, reference) {
                Some(target) => self.gaps(narrow, target, path),
                None => vec![undecided(path, format!("{reference} leads nowhere"))],
            },
        }
    }

    fn multiple_of(&self, own: &Map<String, Value>, possible: Types, wide: &Value, path: &str) -> Vec<Gap> {
        let narrow = own.get("multipleOf");
        let whole = |value: &Value| value.as_u64().filter(|number| *number > 0);
        let follows = narrow == Some(wide)
            || matches!((narrow.and_then(whole), whole(wide)), (Some(narrow), Some(wide)) if narrow % wide == 0)
            || (whole(wide) == Some(1) && possible.and(Types::NUMBER).is_within(Types::INTEGER));
        if follows || !possible.meets(Types::NUMBER) {
            return Vec::new();
        }
        let change = self.differs("multipleOf", narrow, wide);
        vec![if narrow.is_none() { certain(path, change) } else { undecided(path, change) }]
    }

    fn as_it_stands(
        &self,
        own: &Map<String, Value>,
        group: &[&'static str],
        wide: &Map<String, Value>,
        possible: Types,
        path: &str,
    ) -> Vec<Gap> {
        let kind = match group[0] {
            "pattern" | "contentEncoding" => Types::STRING,
            "contains" | "unevaluatedItems" => Types::ARRAY,
            "propertyNames" | "dependentRequired" | "dependentSchemas" | "unevaluatedProperties" => Types::OBJECT,
            _ => possible,
        };
        if !possible.meets(kind) {
            return Vec::new();
        }
        let equal = group.iter().all(|keyword| own.get(*keyword) == wide.get(*keyword));
        let mut values = group.iter().filter_map(|keyword| wide.get(*keyword));
        // what is not evaluated depends on everything beside it
        let depends = group[0].starts_with("unevaluated");
        if equal && !depends && (self.same_definitions || !values.clone().any(refers)) {
            return Vec::new();
        }
        let keyword = group.iter().copied().find(|keyword| wide.contains_key(*keyword)).unwrap_or(group[0]);
        let known = group.iter().find_map(|keyword| own.get(*keyword));
        let change = values.next().map_or_else(String::new, |value| self.differs(keyword, known, value));
        vec![undecided(path, change)]
    }
}

pub(super) fn map_of<'a>(object: Option<&'a Map<String, Value>>, keyword: &str) -> Option<&'a Map<String, Value>> {
    object.and_then(|object| object.get(keyword)).and_then(Value::as_object)
}

pub(super) fn has_required(schema: &Map<String, Value>, name: &str) -> bool {
    schema.get("required").and_then(Value::as_array).is_some_and(|names| names.iter().any(|it| it == name))
}

/// Whether no two items of a list can be equal.
fn has_no_pairs(own: &Map<String, Value>) -> bool {
    own.get("uniqueItems") == Some(&Value::Bool(true))
        || own.get("maxItems").and_then(Value::as_u64).is_some_and(|most| most <= 1)
}

/// Whether a bound on numbers follows from those that stand in the schema.
fn bound_follows(
    own: &Map<String, Value>,
    keyword: &str,
    counterpart: &str,
    lower: bool,
    suffices: bool,
    wide: &Value,
) -> bool {
    let stricter = if lower { Ordering::Greater } else { Ordering::Less };
    let how = |keyword: &str| own.get(keyword).and_then(|value| compare(value, wide));
    matches!(how(keyword), Some(how) if how == stricter || how == Ordering::Equal)
        || matches!(how(counterpart), Some(how) if how == stricter || (suffices && how == Ordering::Equal))
}

/// The order of two numbers; none where it would have to be rounded to be told.
fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    let whole = |value: &Value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    if let (Some(one), Some(other)) = (whole(one), whole(other)) {
        return Some(one.cmp(&other));
    }
    // beyond 2^53 whole numbers are rounded
    let exact = |value: &Value| match whole(value) {
        Some(number) if number.unsigned_abs() > 1 << 53 => None,
        _ => value.as_f64(),
    };
    exact(one)?.partial_cmp(&exact(other)?)
}
