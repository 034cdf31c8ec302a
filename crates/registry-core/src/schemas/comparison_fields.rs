//! Fields of objects and items of lists.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    comparison::{Comparison, Gap, certain, undecided},
    comparison_parts::{ANYTHING, map_of},
    dialect::escaped,
};

impl<'a> Comparison<'a> {
    pub(super) fn fields(&mut self, narrow: &'a Value, wide: &'a Map<String, Value>, path: &str) -> Vec<Gap> {
        let (mine, theirs) = (Fields::of(narrow.as_object()), Fields::of(Some(wide)));
        let patterned = mine.patterns.is_some() || theirs.patterns.is_some();
        if patterned && !(same_names(mine.patterns, theirs.patterns) && same_names(mine.named, theirs.named)) {
            return vec![undecided(path, "fields changed beside patternProperties".to_owned())];
        }
        let mut gaps = Vec::new();
        for (pattern, wide) in theirs.patterns.into_iter().flatten() {
            let narrow = mine.patterns.and_then(|patterns| patterns.get(pattern)).unwrap_or(&ANYTHING);
            gaps.extend(self.gaps(narrow, wide, &format!("{path}/patternProperties/{}", escaped(pattern))));
        }
        for (name, narrow) in mine.named.into_iter().flatten() {
            let place = format!("{path}/properties/{}", escaped(name));
            match theirs.named.and_then(|fields| fields.get(name)) {
                Some(wide) => gaps.extend(self.gaps(narrow, wide, &place)),
                None => gaps.extend(self.only_in_narrow(narrow, theirs.rest, &place)),
            }
        }
        for (name, wide) in theirs.named.into_iter().flatten() {
            if mine.named.is_none_or(|fields| !fields.contains_key(name)) {
                gaps.extend(self.only_in_wide(mine.rest, wide, &format!("{path}/properties/{}", escaped(name))));
            }
        }
        let place = format!("{path}/additionalProperties");
        if theirs.rest == &Value::Bool(false) && mine.rest != &Value::Bool(false) {
            let closed = "undeclared fields are no longer allowed, which";
            gaps.push(certain(&place, self.told(closed, "undeclared fields are newly allowed, which")));
            return gaps;
        }
        gaps.extend(self.gaps(mine.rest, theirs.rest, &place));
        gaps
    }

    fn only_in_narrow(&mut self, narrow: &'a Value, rest: &'a Value, place: &str) -> Option<Gap> {
        if self.gaps(narrow, rest, place).is_empty() {
            return None;
        }
        let change = if rest == &Value::Bool(false) {
            self.told("field removed from a closed object", "field added to a closed object")
        } else {
            self.told("field removed that other fields may not replace", "field added that other fields may not be")
        };
        Some(certain(place, change))
    }

    fn only_in_wide(&mut self, rest: &'a Value, wide: &'a Value, place: &str) -> Option<Gap> {
        if self.gaps(rest, wide, place).is_empty() {
            return None;
        }
        let added = "field added to an object that is open, so that old data may hold anything under this name,";
        let removed =
            "field removed from an object that stays open, so that new data may hold anything under this name,";
        Some(certain(place, self.told(added, removed)))
    }

    pub(super) fn items(&mut self, narrow: &'a Value, wide: &'a Map<String, Value>, path: &str) -> Vec<Gap> {
        let own = narrow.as_object();
        let first = |map: Option<&'a Map<String, Value>>| {
            map.and_then(|map| map.get("prefixItems")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
        };
        let rest = |map: Option<&'a Map<String, Value>>| map.and_then(|map| map.get("items")).unwrap_or(&ANYTHING);
        let (mine, theirs) = (first(own), first(Some(wide)));
        let most = own.and_then(|own| own.get("maxItems")).and_then(Value::as_u64);
        let reached = |index: usize| most.is_none_or(|most| (index as u64) < most);
        let declared = mine.len().max(theirs.len());
        let mut gaps = Vec::new();
        for index in (0..declared).filter(|index| reached(*index)) {
            let narrow = mine.get(index).unwrap_or_else(|| rest(own));
            let wide = theirs.get(index).unwrap_or_else(|| rest(Some(wide)));
            gaps.extend(self.gaps(narrow, wide, &format!("{path}/prefixItems/{index}")));
        }
        if reached(declared) {
            gaps.extend(self.gaps(rest(own), rest(Some(wide)), &format!("{path}/items")));
        }
        gaps
    }
}

/// What a schema says of the fields of an object.
struct Fields<'a> {
    named: Option<&'a Map<String, Value>>,
    patterns: Option<&'a Map<String, Value>>,
    rest: &'a Value,
}

impl<'a> Fields<'a> {
    fn of(schema: Option<&'a Map<String, Value>>) -> Self {
        Self {
            named: map_of(schema, "properties"),
            patterns: map_of(schema, "patternProperties"),
            rest: schema.and_then(|schema| schema.get("additionalProperties")).unwrap_or(&ANYTHING),
        }
    }
}

fn same_names(one: Option<&Map<String, Value>>, other: Option<&Map<String, Value>>) -> bool {
    let names =
        |map: Option<&Map<String, Value>>| map.into_iter().flat_map(Map::keys).cloned().collect::<BTreeSet<_>>();
    names(one) == names(other)
}
