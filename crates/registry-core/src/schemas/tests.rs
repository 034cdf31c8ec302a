//! What is told of two versions, and that nothing is called compatible that is not.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    comparison::findings,
    document::{SchemaDocument, compiled},
    finding::Towards,
};

fn relaxed(document: &Value) -> Value {
    SchemaDocument::parse(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}")).relaxed()
}

fn told(old: &Value, new: &Value, towards: Towards) -> Vec<String> {
    findings(&relaxed(old), &relaxed(new), towards, 1).iter().map(ToString::to_string).collect()
}

/// Both directions of a change, each with the beginning of what is told first; empty for compatible.
fn check(old: &Value, new: &Value, backward: &str, forward: &str) {
    for (towards, expected) in [(Towards::Backward, backward), (Towards::Forward, forward)] {
        let told = told(old, new, towards);
        match expected {
            "" => assert!(told.is_empty(), "{towards:?} {old} -> {new}: {told:?}"),
            _ => {
                assert!(told.first().is_some_and(|it| it.starts_with(expected)), "{towards:?} {old} -> {new}: {told:?}")
            }
        }
    }
}

fn closed(fields: Value, required: Value) -> Value {
    json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false})
}

#[test]
fn fields_of_closed_objects() {
    let amount = json!({"amount": {"type": "integer"}});
    let with = |more: Value| {
        let mut fields = amount.clone();
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let base = closed(amount.clone(), json!([]));
    check(&base, &base, "", "");
    check(
        &base,
        &closed(with(json!({"note": {"type": "string"}})), json!([])),
        "",
        "/properties/note: field added to a closed object breaks forward compatibility with version 1",
    );
    check(
        &closed(json!({}), json!([])),
        &closed(amount.clone(), json!(["amount"])),
        "/properties/amount: required field added without default breaks backward compatibility with version 1",
        "/properties/amount: field added to a closed object",
    );
    check(
        &base,
        &closed(amount.clone(), json!(["amount"])),
        "/properties/amount: field became required without default",
        "",
    );
    let defaulted = json!({"amount": {"type": "integer", "default": 0}});
    check(&base, &closed(defaulted, json!(["amount"])), "", "");
    let nested = |minimum: i64| {
        closed(json!({"a": closed(json!({"b": {"type": "integer", "minimum": minimum}}), json!([]))}), json!([]))
    };
    check(&nested(1), &nested(0), "", "/properties/a/properties/b: minimum changed from 1 to 0 breaks forward");
    check(
        &base,
        &json!({"type": "object", "properties": {"amount": {"type": "integer"}}}),
        "",
        "/additionalProperties: undeclared fields are newly allowed",
    );
}

#[test]
fn fields_of_open_objects() {
    let open = |fields: Value| json!({"type": "object", "properties": fields});
    check(
        &open(json!({})),
        &open(json!({"note": {"type": "string"}})),
        "/properties/note: field added to an object that is open",
        "",
    );
    check(&open(json!({})), &open(json!({"note": {"description": "anything"}})), "", "");
    check(
        &json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        &json!({"type": "object", "additionalProperties": {"type": "integer"}, "properties": {"a": {"type": "number"}}}),
        "",
        "/properties/a: field added that other fields may not be",
    );
}

#[test]
fn kinds_values_and_bounds() {
    for (old, new, backward, forward) in [
        (
            json!({"type": "integer"}),
            json!({"type": "number"}),
            "",
            "/properties/v: type changed from integer to number",
        ),
        (
            json!({"type": "string"}),
            json!({"type": ["string", "null"]}),
            "",
            "/properties/v: type changed from string to string or null",
        ),
        (json!({"enum": ["a"]}), json!({"enum": ["a", "b"]}), "", "/properties/v: value \"b\" newly accepted"),
        (
            json!({"enum": [1, 2]}),
            json!({"type": "integer", "minimum": 1}),
            "",
            "/properties/v: list of values [1,2] removed",
        ),
        (
            json!({"enum": [0, 2]}),
            json!({"minimum": 1}),
            "/properties/v: value 0 no longer accepted",
            "/properties/v: list of values",
        ),
        (json!({"const": "x"}), json!({"type": "string"}), "", "/properties/v: list of values \"x\" removed"),
        (
            json!({"minimum": 1, "type": "integer"}),
            json!({"exclusiveMinimum": 0, "type": "integer"}),
            "",
            "/properties/v: minimum 1 removed",
        ),
        (json!({"minimum": 0}), json!({"exclusiveMinimum": 0}), "/properties/v: exclusiveMinimum 0 added", ""),
        (json!({"maxLength": 5}), json!({"maxLength": 4}), "/properties/v: maxLength changed from 5 to 4", ""),
        (json!({"type": "integer"}), json!({"type": "integer", "maxLength": 4}), "", ""),
        (
            json!({"multipleOf": 4}),
            json!({"multipleOf": 2}),
            "",
            "/properties/v: multipleOf changed from 4 to 2, and forward compatibility",
        ),
        (json!({"type": "integer"}), json!({"type": "integer", "multipleOf": 1}), "", ""),
        (
            json!({"pattern": "^a"}),
            json!({"pattern": "^a+"}),
            "/properties/v: pattern changed from \"^a\" to \"^a+\", and backward compatibility with version 1 cannot be decided",
            "/properties/v: pattern",
        ),
        (json!({"pattern": "^a"}), json!({}), "", "/properties/v: pattern \"^a\" removed"),
        (
            json!({"format": "uuid"}),
            json!({"type": "string"}),
            "/properties/v: type changed from anything to string",
            "/properties/v: format \"uuid\" removed",
        ),
        (json!({"uniqueItems": true}), json!({}), "", "/properties/v: uniqueItems removed"),
        (
            json!({"minimum": 9_007_199_254_740_993_u64}),
            json!({"minimum": 9_007_199_254_740_992_u64}),
            "",
            "/properties/v: minimum",
        ),
        (
            json!({"not": {"type": "string"}}),
            json!({"not": {"type": "number"}}),
            "/properties/v: not changed",
            "/properties/v: not changed",
        ),
    ] {
        let field = |schema: &Value| closed(json!({"v": schema}), json!([]));
        check(&field(&old), &field(&new), backward, forward);
    }
}

#[test]
fn alternatives_lists_and_references() {
    let tagged = |kinds: &[&str]| {
        let branches: Vec<Value> = kinds
            .iter()
            .map(|kind| closed(json!({"kind": {"const": kind}, "n": {"type": "integer"}}), json!(["kind"])))
            .collect();
        json!({"oneOf": branches})
    };
    check(&tagged(&["a"]), &tagged(&["a", "b"]), "", "/properties/kind: value \"b\" newly accepted");
    check(&tagged(&["a", "b"]), &tagged(&["b", "a"]), "", "");
    let list = |item: Value| closed(json!({"l": {"type": "array", "items": item}}), json!([]));
    check(
        &list(json!({"type": "integer"})),
        &list(json!({"type": "number"})),
        "",
        "/properties/l/items: type changed from integer to number",
    );
    check(
        &list(json!({"anyOf": [{"type": "integer"}, {"type": "null"}]})),
        &list(json!({"type": ["integer", "null", "string"]})),
        "",
        "/properties/l/items: an alternative is newly among those of anyOf",
    );
    let tree = |leaf: &str| {
        json!({"$ref": "#/$defs/node", "$defs": {"node": closed(
            json!({"leaf": {"type": leaf}, "next": {"$ref": "#/$defs/node"}}), json!([]))}})
    };
    check(&tree("integer"), &tree("number"), "", "/properties/leaf: type changed");
    let own =
        |minimum: i64| json!({"type": "object", "allOf": [closed(json!({"a": {"minimum": minimum}}), json!([]))]});
    check(&own(2), &own(1), "", "/properties/a: minimum changed from 2 to 1");
    let recursive = |kind: &str| json!({"type": "object", "properties": {"v": {"type": kind}, "next": {"$ref": "#"}}, "additionalProperties": false});
    check(&recursive("integer"), &recursive("number"), "", "/properties/v: type changed");
}

#[test]
fn intertwined_schemas_end_with_a_refusal_and_not_with_the_stack() {
    let ring = |size: usize| {
        let nodes: serde_json::Map<String, Value> = (0..size)
            .map(|index| {
                let next = json!({"$ref": format!("#/$defs/n{}", (index + 1) % size)});
                (format!("n{index}"), closed(json!({"next": next, "other": {"$ref": "#/$defs/n0"}}), json!([])))
            })
            .collect();
        json!({"$ref": "#/$defs/n0", "$defs": nodes})
    };
    let told = told(&ring(97), &ring(89), Towards::Backward);
    assert!(told.iter().any(|it| it.contains("too intertwined")), "{told:?}");
}

/// Small schemas over few names and values, so that many of them are comparable.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!(true)),
        Just(json!(false)),
        prop::sample::subsequence(vec!["integer", "number", "string", "null", "array", "object"], 1..3)
            .prop_map(|types| json!({"type": types})),
        (0..3_i64, 1..4_i64).prop_map(|(low, more)| json!({"minimum": low, "maximum": low + more})),
        (0..3_i64).prop_map(|low| json!({"exclusiveMinimum": low, "minLength": low})),
        prop::sample::subsequence(vec![json!(0), json!(1), json!("a"), json!(null), json!({"a": 1})], 1..4)
            .prop_map(|values| json!({"enum": values})),
        Just(json!({"type": "string", "pattern": "^a"})),
        Just(json!({"$ref": "#/$defs/d"})),
        Just(json!({"default": 1, "type": "integer"})),
    ];
    leaf.prop_recursive(3, 24, 3, |inner| {
        let fields = prop::collection::btree_map("[ab]", inner.clone(), 0..3);
        prop_oneof![
            (fields, prop::sample::subsequence(vec!["a", "b"], 0..3), prop::option::of(inner.clone())).prop_map(
                |(fields, required, rest)| {
                    let mut schema = json!({"type": "object", "properties": fields, "required": required});
                    if let Some(rest) = rest {
                        schema["additionalProperties"] = rest;
                    }
                    schema
                }
            ),
            (prop::collection::vec(inner.clone(), 0..3), inner.clone()).prop_map(|(first, rest)| {
                if first.is_empty() {
                    json!({"items": rest})
                } else {
                    json!({"prefixItems": first, "items": rest, "maxItems": 2})
                }
            }),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|some| json!({"anyOf": some})),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|some| json!({"oneOf": some})),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|all| json!({"allOf": all})),
            inner.clone().prop_map(|not| json!({"not": not})),
            (inner.clone(), inner)
                .prop_map(|(one, other)| json!({"allOf": [one], "anyOf": [other], "required": ["a"]})),
        ]
    })
}

fn instance() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        (0..6_i64).prop_map(Value::from),
        Just(json!(1.5)),
        Just(json!(1.0)),
        prop::sample::select(vec!["", "a", "ab", "ba"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|fields| json!(fields)),
        ]
    })
}

fn whole(schema: &Value, definition: &Value) -> Value {
    json!({"anyOf": [schema], "$defs": {"d": definition}})
}

/// One schema changed a little, so that pairs are often in relation.
fn loosened(schema: &Value, how: u8) -> Value {
    let Value::Object(object) = schema else { return json!(true) };
    let mut object = object.clone();
    match how % 6 {
        0 => drop(object.remove("required")),
        1 => drop(object.remove("type")),
        2 => drop(object.remove("minimum")),
        3 => {
            for keyword in ["anyOf", "oneOf"] {
                if let Some(some) = object.get_mut(keyword).and_then(Value::as_array_mut) {
                    some.push(json!({"type": "boolean"}));
                }
            }
        }
        4 => drop(object.insert("properties".to_owned(), json!({"a": {"type": ["integer", "null"]}}))),
        _ => drop(object.insert("additionalProperties".to_owned(), json!(false))),
    }
    for value in object.values_mut() {
        match value {
            Value::Array(all) => all.iter_mut().filter(|it| it.is_object()).for_each(|it| *it = loosened(it, how / 6)),
            Value::Object(_) => {}
            _ => {}
        }
    }
    Value::Object(object)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The one thing that must never go wrong: to call compatible what is not.
    #[test]
    fn what_is_called_compatible_loses_no_value(
        old in schema(), other in schema(), definitions in (schema(), schema(), any::<bool>()), how in any::<u8>(),
        related in 0..4_u8, instances in prop::collection::vec(instance(), 24),
    ) {
        let (first, second, same) = definitions;
        // a definition that refers to itself is no schema
        let plain = |definition: &Value| {
            if definition.to_string().contains("$ref") { json!({"type": "integer"}) } else { definition.clone() }
        };
        let definition = plain(&first);
        let changed = if same { definition.clone() } else { plain(&second) };
        let new = match related { 0 => other, 1 => old.clone(), _ => loosened(&old, how) };
        let (old, new) = (whole(&old, &definition), whole(&new, &changed));
        let (Ok(old), Ok(new)) = (SchemaDocument::parse(old), SchemaDocument::parse(new)) else { return Ok(()) };
        let (old, new) = (old.relaxed(), new.relaxed());
        let (by_old, by_new) = (compiled(&old).unwrap(), compiled(&new).unwrap());
        let backward = findings(&old, &new, Towards::Backward, 1).is_empty();
        let forward = findings(&old, &new, Towards::Forward, 1).is_empty();
        for instance in &instances {
            let (in_old, in_new) = (by_old.is_valid(instance), by_new.is_valid(instance));
            prop_assert!(!backward || !in_old || in_new, "{old} -> {new} loses {instance}");
            prop_assert!(!forward || !in_new || in_old, "{new} -> {old} loses {instance}");
        }
    }
}
