//! Registering schemas: versions, addresses, rules, and what the database itself refuses.

use cogo_contracts::{Compatibility, SchemaSubject};
use cogo_registry_core::{Incompatible, NewSchema, SchemaCatalog, SchemaDocument, SchemaError};
use cogo_test_support::database;
use serde_json::{Value, json};

pub(crate) fn subject(text: &str) -> SchemaSubject {
    text.parse().unwrap()
}

/// A closed object of these fields.
pub(crate) fn closed(fields: Value, required: Value) -> Value {
    json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false})
}

pub(crate) fn new(name: &str, document: Value) -> NewSchema {
    NewSchema {
        subject: subject(name),
        document: SchemaDocument::parse(document).unwrap(),
        author: "test".to_owned(),
        note: None,
        compatibility: None,
    }
}

fn under(rule: Compatibility, name: &str, document: Value) -> NewSchema {
    NewSchema { compatibility: Some(rule), ..new(name, document) }
}

fn incompatible(outcome: Result<cogo_registry_core::RegisteredSchema, SchemaError>) -> Incompatible {
    match outcome {
        Err(SchemaError::Incompatible(incompatible)) => incompatible,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn versions_count_up_and_the_same_content_has_one_address() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    let first = closed(json!({"amount": {"type": "integer"}}), json!([]));
    let registered = catalog.register(&new("bank/pay", first.clone())).await.unwrap();
    assert_eq!((registered.version, registered.added), (1, true));
    let again: Value = serde_json::from_str(
        r#"{"additionalProperties":false, "required":[], "properties":{"amount":{"type":"integer"}}, "type":"object"}"#,
    )
    .unwrap();
    let again = catalog.register(&new("bank/pay", again)).await.unwrap();
    assert_eq!(
        (again.version, again.added, &again.digest),
        (1, false, &registered.digest),
        "the order of keys is nothing"
    );

    let wider = closed(json!({"amount": {"type": "number"}}), json!([]));
    let second = catalog.register(&new("bank/pay", wider.clone())).await.unwrap();
    assert_eq!((second.version, second.added), (2, true));
    let elsewhere = catalog.register(&new("bank/pay/reply", wider.clone())).await.unwrap();
    assert_eq!((elsewhere.version, &elsewhere.digest), (1, &second.digest));
    let documents: i64 =
        sqlx::query_scalar("select count(*) from registry.schema_documents").fetch_one(&database.pool).await.unwrap();
    assert_eq!(documents, 2, "one content is kept once");

    let versions = catalog.versions(&subject("bank/pay")).await.unwrap();
    assert_eq!(versions.iter().map(|it| it.version).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((&versions[1].document, versions[1].author.as_str()), (&first, "test"));
    assert_eq!(catalog.version(&subject("bank/pay"), 2).await.unwrap().unwrap().document, wider);
    assert!(catalog.version(&subject("bank/pay"), 3).await.unwrap().is_none());
    let subjects = catalog.subjects().await.unwrap();
    let listed: Vec<_> = subjects.iter().map(|it| (it.subject.to_string(), it.newest)).collect();
    assert_eq!(listed, [("bank/pay/reply".to_owned(), 1), ("bank/pay/request".to_owned(), 2)]);
    let told: Vec<String> = sqlx::query_scalar(
        "select e.detail ->> 'subject' from public.bus_events e where e.kind = 'schema_registered' order by e.id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(told, ["bank/pay/request", "bank/pay/request", "bank/pay/reply"]);
}

#[tokio::test]
async fn each_rule_refuses_what_breaks_it_and_says_where() {
    let optional = closed(json!({"amount": {"type": "integer"}, "note": {"type": "string"}}), json!([]));
    let required = closed(json!({"amount": {"type": "integer"}, "note": {"type": "string"}}), json!(["amount"]));
    let added = closed(
        json!({"amount": {"type": "integer"}, "note": {"type": "string"}, "fee": {"type": "integer"}}),
        json!(["fee"]),
    );
    for (rule, next, told) in [
        (Compatibility::None, &added, None),
        (
            Compatibility::Backward,
            &required,
            Some(
                "/properties/amount: field became required without default breaks backward compatibility with version 1",
            ),
        ),
        (Compatibility::Forward, &required, None),
        (Compatibility::Full, &required, Some("/properties/amount: field became required")),
        (
            Compatibility::Backward,
            &added,
            Some("/properties/fee: required field added without default breaks backward compatibility with version 1"),
        ),
        (
            Compatibility::Forward,
            &added,
            Some("/properties/fee: field added to a closed object breaks forward compatibility with version 1"),
        ),
        (Compatibility::FullTransitive, &optional, None),
    ] {
        let database = database().await;
        let catalog = SchemaCatalog::new(database.pool.clone());
        catalog.register(&under(rule, "bank/pay", optional.clone())).await.unwrap();
        let outcome = catalog.register(&new("bank/pay", next.clone())).await;
        let judged = catalog.judge(&subject("bank/pay"), &new("bank/pay", next.clone()).document, None).await.unwrap();
        match told {
            None => assert!(outcome.is_ok() && judged.is_empty(), "{rule}: {outcome:?}"),
            Some(told) => {
                let refused = incompatible(outcome);
                assert!(refused.findings.iter().any(|it| it.to_string().starts_with(told)), "{rule}: {refused}");
                assert_eq!(refused.findings, judged);
            }
        }
    }
}

#[tokio::test]
async fn transitive_rules_look_at_every_version() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    let versions = [
        closed(json!({"a": {"type": "integer"}}), json!([])),
        closed(json!({"a": {"type": ["integer", "string"]}}), json!([])),
        closed(json!({"a": {"type": "string"}}), json!([])),
    ];
    // version 3 takes what version 2 took only without a rule in between
    for (name, rule, refused) in
        [("a/one", Compatibility::Backward, false), ("a/every", Compatibility::BackwardTransitive, true)]
    {
        catalog.register(&under(Compatibility::None, name, versions[0].clone())).await.unwrap();
        catalog.register(&new(name, versions[2].clone())).await.unwrap();
        assert!(catalog.set_compatibility(&subject(name), rule, "test").await.unwrap());
        let outcome = catalog.register(&new(name, closed(json!({"a": {"type": ["string", "null"]}}), json!([])))).await;
        assert_eq!(outcome.is_err(), refused, "{name}: {outcome:?}");
        if refused {
            let told = incompatible(outcome).to_string();
            assert!(told.contains("with version 1") && !told.contains("with version 2"), "{told}");
        }
    }
    assert!(!catalog.set_compatibility(&subject("no/body"), Compatibility::None, "test").await.unwrap());
}

#[tokio::test]
async fn a_required_field_with_a_default_may_be_added() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    catalog.register(&new("bank/pay", closed(json!({}), json!([])))).await.unwrap();
    let added = closed(json!({"fee": {"type": "integer", "default": 0}}), json!(["fee"]));
    assert_eq!(catalog.register(&new("bank/pay", added)).await.unwrap().version, 2);
}

#[tokio::test]
async fn what_cannot_be_decided_is_refused() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    let field = |pattern: &str| closed(json!({"code": {"type": "string", "pattern": pattern}}), json!([]));
    catalog.register(&new("bank/pay", field("^[a-z]+$"))).await.unwrap();
    let refused = incompatible(catalog.register(&new("bank/pay", field("^[a-z0-9]+$"))).await);
    assert!(!refused.findings[0].certain);
    assert!(refused.to_string().contains("/properties/code: pattern changed"), "{refused}");
    assert!(refused.to_string().contains("cannot be decided"), "{refused}");
    assert_eq!(catalog.versions(&subject("bank/pay")).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_registered_never_changes() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    catalog.register(&new("bank/pay", closed(json!({}), json!([])))).await.unwrap();
    for statement in [
        "update registry.schema_documents set document = '{\"type\": \"object\"}'",
        "delete from registry.schema_documents",
        "update registry.schema_versions set digest = digest",
        "delete from registry.schema_versions",
        "truncate registry.schema_versions",
        "insert into registry.schema_documents (digest, document) values (sha256('x'), '{}')",
    ] {
        let refused = sqlx::query(statement).execute(&database.pool).await;
        assert!(refused.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn two_who_register_at_once_get_versions_that_fit_each_other() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    catalog.register(&new("bank/pay", closed(json!({"a": {"type": "integer"}}), json!([])))).await.unwrap();
    // each alone is backward compatible with version 1, but neither with the other
    let with =
        |name: &str| new("bank/pay", closed(json!({"a": {"type": "integer"}, name: {"type": "string"}}), json!([])));
    let (one, other) = (with("b"), with("c"));
    let (one, other) = tokio::join!(catalog.register(&one), catalog.register(&other));
    let refused = match (one, other) {
        (Ok(kept), refused) | (refused, Ok(kept)) => {
            assert_eq!(kept.version, 2);
            incompatible(refused)
        }
        both => panic!("{both:?}"),
    };
    assert!(refused.to_string().contains("with version 2"), "{refused}");
}

#[tokio::test]
async fn who_judged_by_an_older_state_is_told_so_by_the_database() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    catalog.register(&new("bank/pay", closed(json!({}), json!([])))).await.unwrap();
    let register = "select r.outcome from registry.register_schema('bank', $1, 'request', '{}', 'x', $2, $3) as r";
    for (role, newest, rule) in [("pay", 0, "backward"), ("pay", 1, "none"), ("other", 3, "none")] {
        let outcome: String =
            sqlx::query_scalar(register).bind(role).bind(newest).bind(rule).fetch_one(&database.pool).await.unwrap();
        assert_eq!(outcome, "changed", "{role} {newest} {rule}");
    }
    assert_eq!(catalog.subjects().await.unwrap().len(), 1, "no trace of what was refused");
}

#[tokio::test]
async fn the_service_role_may_register_and_read_and_others_may_not() {
    let database = database().await;
    for (role, allowed) in [("service_role", true), ("anon", false), ("authenticated", false)] {
        for statement in [
            "select r.outcome from registry.register_schema('bank', 'pay', 'request', '{}', 'x', 0, 'none') as r",
            "select registry.set_schema_compatibility('bank', 'pay', 'request', 'full', 'x')",
            "select registry.key_opens('rag-embed', 'x')",
            "select c.schema_version, s.newest, v.version, d.document from registry.clock c, registry.schema_subjects s,
                    registry.schema_versions v, registry.schema_documents d",
        ] {
            let mut transaction = database.pool.begin().await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(format!("set local role {role}"))).execute(&mut *transaction).await.unwrap();
            let outcome = sqlx::query(statement).execute(&mut *transaction).await;
            assert_eq!(outcome.is_ok(), allowed, "{role}: {statement}: {outcome:?}");
        }
    }
    for table in ["schema_subjects", "schema_documents", "schema_versions"] {
        let guarded: bool =
            sqlx::query_scalar("select c.relrowsecurity from pg_class c where c.oid = $1::text::regclass")
                .bind(format!("registry.{table}"))
                .fetch_one(&database.pool)
                .await
                .unwrap();
        assert!(guarded, "{table}");
    }
}
