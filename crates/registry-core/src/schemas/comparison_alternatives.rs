//! Alternatives: whether a schema fits one of them, and whether they exclude each other.

use serde_json::{Map, Value};

use super::{
    comparison::{Comparison, Gap, refers, resolved, undecided},
    comparison_parts::{has_required, map_of},
    comparison_types::Types,
};

impl<'a> Comparison<'a> {
    pub(super) fn one_of_them(
        &mut self,
        narrow: &'a Value,
        alternatives: &'a [Value],
        keyword: &str,
        path: &str,
    ) -> Vec<Gap> {
        let possible = Types::possible(self.narrow, narrow);
        let mut near = None;
        for wide in alternatives {
            let gaps = self.gaps(narrow, wide, path);
            if gaps.is_empty() {
                return gaps;
            }
            if near.is_none() && possible.is_within(Types::possible(self.wide, wide)) {
                near = Some(gaps);
            }
        }
        // the one alternative that is of the same kind tells more than that none fits
        match near {
            Some(gaps)
                if alternatives.iter().filter(|it| Types::possible(self.wide, it).meets(possible)).count() == 1 =>
            {
                gaps
            }
            _ => {
                let change =
                    self.told("an alternative is no longer among those", "an alternative is newly among those");
                vec![undecided(path, format!("{change} of {keyword}, or is not recognised as one"))]
            }
        }
    }

    pub(super) fn exactly_one_of_them(&mut self, narrow: &'a Value, alternatives: &'a [Value], path: &str) -> Vec<Gap> {
        let apart = |one: &'a Value, other: &'a Value| are_apart(self.wide, one, other);
        let disjoint = alternatives
            .iter()
            .enumerate()
            .all(|(index, one)| alternatives[index + 1..].iter().all(|other| apart(one, other)));
        if disjoint {
            return self.one_of_them(narrow, alternatives, "oneOf", path);
        }
        let same = narrow.get("oneOf").and_then(Value::as_array).is_some_and(|own| own == alternatives);
        if same && (self.same_definitions || !alternatives.iter().any(refers)) {
            return Vec::new();
        }
        let change = "oneOf changed, and its alternatives are not told apart by a required field with a fixed text";
        vec![undecided(path, change.to_owned())]
    }
}

/// Whether no value is accepted by both: they are of different kinds, or objects told apart by a fixed text.
fn are_apart(root: &Value, one: &Value, other: &Value) -> bool {
    let common = Types::possible(root, one).and(Types::possible(root, other));
    if common.is_empty() {
        return true;
    }
    let (Some(one), Some(other)) = (resolved(root, one), resolved(root, other)) else { return false };
    let texts = |schema: &Map<String, Value>, name: &str| -> Option<Vec<String>> {
        let field = map_of(Some(schema), "properties")?.get(name)?;
        let values = match (field.get("const"), field.get("enum")) {
            (Some(value), _) => vec![value.clone()],
            (None, Some(Value::Array(values))) => values.clone(),
            _ => return None,
        };
        values.into_iter().map(|value| value.as_str().map(str::to_owned)).collect()
    };
    if common.is_within(Types::STRING)
        && let (Some(one), Some(other)) = (fixed_texts(one), fixed_texts(other))
    {
        return one.iter().all(|text| !other.contains(text));
    }
    let names = map_of(Some(one), "properties").into_iter().flat_map(Map::keys);
    common.is_within(Types::OBJECT)
        && names.filter(|name| has_required(one, name) && has_required(other, name)).any(|name| {
            matches!((texts(one, name), texts(other, name)), (Some(one), Some(other)) if one.iter().all(|text| !other.contains(text)))
        })
}

fn fixed_texts(schema: &Map<String, Value>) -> Option<Vec<&str>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value.as_str()?]),
        (None, Some(Value::Array(values))) => values.iter().map(Value::as_str).collect(),
        _ => None,
    }
}
