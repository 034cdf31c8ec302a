//! Whether one schema accepts every value that another accepts, as far as that can be shown.
//!
//! It is shown part by part: the wide schema is a conjunction of keywords, and each has to follow from the narrow one, from
//! its own keywords, from what it refers to, from one of its `allOf`, or from each of its alternatives. What follows
//! otherwise is not seen, and refused: this may refuse too much, never too little.

use serde_json::{Map, Value};

use super::{
    comparison_parts::{self, Part},
    comparison_types::Types,
    dialect, document,
    finding::{Finding, Towards},
};

/// Steps, and steps within steps, after which two schemas count as too intertwined to compare.
const MOST_STEPS: u32 = 100_000;
const DEEPEST: u32 = 120;

/// A place at which the wide schema does not accept, or is not known to accept, what the narrow one accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) path: String,
    pub(super) change: String,
    pub(super) certain: bool,
}

/// Every place at which readers of one version do not get along with data of the other.
pub(super) fn findings(old: &Value, new: &Value, towards: Towards, against: i32) -> Vec<Finding> {
    let (narrow, wide) = match towards {
        Towards::Backward => (old, new),
        Towards::Forward => (new, old),
    };
    let mut comparison = Comparison {
        narrow,
        wide,
        towards,
        same_definitions: old.get("$defs") == new.get("$defs") && !(refers_to_root(old) || refers_to_root(new)),
        assumed: Vec::new(),
        steps: 0,
        depth: 0,
    };
    let gaps = comparison.gaps(narrow, wide, "");
    let found =
        gaps.into_iter().map(|Gap { path, change, certain }| Finding { path, change, towards, certain, against });
    let mut found: Vec<Finding> = found.collect();
    found.dedup();
    found
}

fn refers_to_root(document: &Value) -> bool {
    document.to_string().contains(r##""$ref":"#""##)
}

pub(super) struct Comparison<'a> {
    pub(super) narrow: &'a Value,
    pub(super) wide: &'a Value,
    pub(super) towards: Towards,
    /// Whether equal references lead to equal schemas.
    pub(super) same_definitions: bool,
    /// Pairs that are being compared further up. Meeting one again means that its parts are compared already, one or more
    /// steps nearer to the root of the value, and values are finite.
    assumed: Vec<(*const Value, *const Value)>,
    steps: u32,
    depth: u32,
}

impl<'a> Comparison<'a> {
    /// The gaps between two subschemas; none when every value that the narrow one accepts is accepted by the wide one.
    pub(super) fn gaps(&mut self, narrow: &'a Value, wide: &'a Value, path: &str) -> Vec<Gap> {
        if accepts_all(wide) || Types::possible(self.narrow, narrow).is_empty() {
            return Vec::new();
        }
        if wide == &Value::Bool(false) {
            return vec![certain(path, self.told("nothing is allowed here any more", "something is allowed here now"))];
        }
        if narrow == wide && (self.same_definitions || !refers(narrow)) {
            return Vec::new();
        }
        let pair: (*const Value, *const Value) = (narrow, wide);
        if self.assumed.contains(&pair) {
            return Vec::new();
        }
        if let Some(decided) = self.each_value(narrow, wide, path) {
            return decided;
        }
        self.assumed.push(pair);
        let parts = wide.as_object().map(comparison_parts::of).unwrap_or_default();
        let gaps = parts.into_iter().flat_map(|part| self.part(narrow, &part, path)).collect();
        self.assumed.pop();
        gaps
    }

    /// A narrow schema that lists its values is tried out value by value.
    fn each_value(&mut self, narrow: &Value, wide: &Value, path: &str) -> Option<Vec<Gap>> {
        let values: Vec<&Value> = match (narrow.get("const"), narrow.get("enum")) {
            (Some(value), _) => vec![value],
            (None, Some(Value::Array(values))) => values.iter().collect(),
            _ => return None,
        };
        let accepted_by_narrow = document::subschema(self.narrow, narrow)?;
        let accepted_by_wide = document::subschema(self.wide, wide)?;
        let lost =
            values.into_iter().filter(|value| accepted_by_narrow.is_valid(value) && !accepted_by_wide.is_valid(value));
        let verb = self.told("no longer accepted", "newly accepted");
        Some(lost.map(|value| certain(path, format!("value {} {verb}", shown(value)))).collect())
    }

    /// Whether one part of the wide schema follows from the narrow one.
    fn part(&mut self, narrow: &'a Value, part: &Part<'a>, path: &str) -> Vec<Gap> {
        self.steps += 1;
        if self.steps > MOST_STEPS || self.depth > DEEPEST {
            return vec![undecided(path, "the two versions are too intertwined to compare".to_owned())];
        }
        self.depth += 1;
        let gaps = self.part_somehow(narrow, part, path);
        self.depth -= 1;
        gaps
    }

    fn part_somehow(&mut self, narrow: &'a Value, part: &Part<'a>, path: &str) -> Vec<Gap> {
        let direct = self.direct(narrow, part, path);
        if direct.is_empty() {
            return direct;
        }
        let Some(object) = narrow.as_object() else { return direct };
        // what is told is the shortest of all that was found: it is nearest to what was meant
        let mut told = direct;
        let mut keep = |gaps: Vec<Gap>| {
            if gaps.len() <= told.len() {
                told = gaps;
            }
            told.is_empty()
        };
        if let Some(target) = object.get("$ref").and_then(|it| dialect::target(self.narrow, it.as_str()?))
            && keep(self.part(target, part, path))
        {
            return Vec::new();
        }
        for one in object.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            if keep(self.part(one, part, path)) {
                return Vec::new();
            }
        }
        for name in ["anyOf", "oneOf"] {
            let Some(alternatives) = object.get(name).and_then(Value::as_array) else { continue };
            if keep(alternatives.iter().flat_map(|one| self.part(one, part, path)).collect()) {
                return Vec::new();
            }
        }
        told
    }

    /// Chooses the words: data of the old version for new readers, or the other way round.
    pub(super) fn told<T>(&self, backward: T, forward: T) -> T {
        match self.towards {
            Towards::Backward => backward,
            Towards::Forward => forward,
        }
    }

    /// Says how a keyword differs; the wide schema has it.
    pub(super) fn differs(&self, keyword: &str, narrow: Option<&Value>, wide: &Value) -> String {
        let wide = shown(wide);
        match (narrow.map(shown), self.towards) {
            (None, Towards::Backward) => format!("{keyword} {wide} added"),
            (None, Towards::Forward) => format!("{keyword} {wide} removed"),
            (Some(narrow), Towards::Backward) => format!("{keyword} changed from {narrow} to {wide}"),
            (Some(narrow), Towards::Forward) => format!("{keyword} changed from {wide} to {narrow}"),
        }
    }
}

pub(super) fn certain(path: &str, change: impl Into<String>) -> Gap {
    Gap { path: path.to_owned(), change: change.into(), certain: true }
}

pub(super) fn undecided(path: &str, change: String) -> Gap {
    Gap { path: path.to_owned(), change, certain: false }
}

/// Whether the schema has no keyword that could refuse anything.
pub(super) fn accepts_all(schema: &Value) -> bool {
    match schema {
        Value::Bool(accepts) => *accepts,
        Value::Object(object) => object.keys().all(|keyword| !comparison_parts::JUDGES.contains(&keyword.as_str())),
        _ => false,
    }
}

/// Whether there is a reference in it.
pub(super) fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => object.contains_key("$ref") || object.values().any(refers),
        Value::Array(values) => values.iter().any(refers),
        _ => false,
    }
}

/// A part of a schema for people, shortened.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(59).collect::<String>()) }
}

/// The subschema behind references that have nothing beside them.
pub(super) fn resolved<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Map<String, Value>> {
    let mut schema = schema.as_object()?;
    for _ in 0..16 {
        match schema.get("$ref") {
            Some(Value::String(reference))
                if !schema
                    .keys()
                    .any(|keyword| keyword != "$ref" && comparison_parts::JUDGES.contains(&keyword.as_str())) =>
            {
                schema = dialect::target(root, reference)?.as_object()?
            }
            Some(_) => return None,
            None => return Some(schema),
        }
    }
    None
}
