//! Payloads held against schemas in memory, and how that memory is kept current.

use std::time::Duration;

use cogo_contracts::{Compatibility, NewMessage, Route, Tenant};
use cogo_registry_core::{
    NewSchema, NotChecked, Registry, SchemaCatalog, SchemaFollower, SchemaRefusal, SchemaRegistry,
};
use cogo_test_support::database;
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    heartbeat::{Running, spawn},
    schemas::{closed, new, subject},
};

const ROUTE: Route = Route::constant("bank", "pay");

fn message(payload: Value) -> NewMessage {
    NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), payload)
}

fn refused(outcome: Result<impl std::fmt::Debug, NotChecked>) -> SchemaRefusal {
    match outcome {
        Err(NotChecked::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn amounts(kind: &str) -> Value {
    closed(json!({"amount": {"type": kind, "minimum": 0}}), json!(["amount"]))
}

struct Following {
    schemas: SchemaRegistry,
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Following {
    fn start(pool: &PgPool, feed: impl FnOnce(SchemaFollower) -> SchemaFollower) -> Self {
        let schemas = SchemaRegistry::new(&Registry::new(pool.clone()));
        let token = CancellationToken::new();
        let task = spawn(feed(SchemaFollower::new(&schemas)).run(token.clone()));
        Self { schemas, token, task }
    }

    async fn until(&self, change: i64) {
        let there = async {
            while self.schemas.change() != Some(change) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(30), there).await.expect("the copy follows");
    }

    async fn stop(self) {
        self.token.cancel();
        self.task.await.unwrap();
    }
}

async fn listeners(pool: &PgPool) -> i64 {
    let sql =
        "select count(*) from pg_stat_activity a where a.datname = current_database() and a.query ilike 'listen%'";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_payload_is_refused_with_places_and_reasons_and_without_its_values() {
    let database = database().await;
    let schemas = SchemaRegistry::new(&Registry::new(database.pool.clone()));
    SchemaCatalog::new(database.pool.clone()).register(&new("bank/pay", amounts("integer"))).await.unwrap();
    assert_eq!(schemas.check(&message(json!({"amount": 3}))).await.unwrap(), Some(1));
    for (payload, path, reason) in [
        (json!({"amount": -17}), "/amount", "minimum of 0"),
        (json!({"amount": "top secret"}), "/amount", "integer"),
        (json!({}), "", "\"amount\" is a required property"),
        (json!({"amount": 1, "fee": "top secret"}), "", "'fee' was unexpected"),
    ] {
        let refusal = refused(schemas.check(&message(payload.clone())).await);
        assert_eq!((refusal.violations[0].path.as_str(), refusal.version), (path, 1), "{payload}");
        assert!(refusal.violations[0].reason.contains(reason), "{refusal}");
        assert!(!refusal.to_string().contains("secret") && !refusal.to_string().contains("-17"), "{refusal}");
        assert!(refusal.to_string().starts_with("Breaks schema bank/pay/request version 1: /"), "{refusal}");
    }
    let stamped = json!({"amount": 3, "__assignment": {"ttl_ms": 5}});
    assert_eq!(schemas.check(&message(stamped)).await.unwrap(), Some(1), "the dispatcher's stamp is no field");
    let mut elsewhere = message(json!({"anything": true}));
    elsewhere.route = Route::constant("bank", "other");
    assert_eq!(schemas.check(&elsewhere).await.unwrap(), None);
    assert_eq!(schemas.check_reply(&ROUTE, &json!(7)).await.unwrap(), None, "replies have a schema of their own");
    let on_shard = NewMessage { route: ROUTE.on_shard(4), ..message(json!({})) };
    refused(schemas.check(&on_shard).await);
}

#[tokio::test]
async fn a_claimed_payload_is_held_against_the_version_that_it_was_sent_as() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    let sender = SchemaRegistry::new(&Registry::new(database.pool.clone()));
    let first = NewSchema { compatibility: Some(Compatibility::None), ..new("bank/pay", amounts("integer")) };
    catalog.register(&first).await.unwrap();
    let mut sent = message(json!({"amount": 3}));
    sender.stamp(&mut sent).await.unwrap();
    catalog.register(&new("bank/pay", closed(json!({"sum": {}}), json!(["sum"])))).await.unwrap();

    let worker = SchemaRegistry::new(&Registry::new(database.pool.clone()));
    worker.check_claimed(&ROUTE, &sent.payload, &sent.headers).await.unwrap();
    let refusal = refused(worker.check_claimed(&ROUTE, &sent.payload, &Map::new()).await);
    assert_eq!(refusal.version, 2, "without a version it is the newest");
    let breaks = json!({"amount": -3});
    assert_eq!(refused(worker.check_claimed(&ROUTE, &breaks, &sent.headers).await).version, 1);
    for named in [json!(9), json!("1"), json!(-1)] {
        let headers = Map::from_iter([("schema-version".to_owned(), named.clone())]);
        let outcome = worker.check_claimed(&ROUTE, &sent.payload, &headers).await;
        assert!(
            matches!(&outcome, Err(unknown @ NotChecked::NoSuchVersion { .. }) if unknown.is_final()),
            "{named}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_change_arrives_by_notification_and_a_fleet_without_schemas_listens_to_none() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    let mut beating = Running::start(&Registry::new(database.pool.clone()), "rag-embed", 0);
    beating.member.activate();
    beating.until_active().await;
    let following = Following::start(&database.pool, |follower| follower.fed_by(&beating.member));
    following.until(0).await;
    assert_eq!(following.schemas.check(&message(json!({"what": "ever"}))).await.unwrap(), None);
    assert_eq!(listeners(&database.pool).await, 0);

    // the first change is told by a beat
    catalog.register(&new("bank/pay", amounts("integer"))).await.unwrap();
    following.until(1).await;
    refused(following.schemas.check(&message(json!({"amount": 1.5}))).await);
    let listening = async {
        while listeners(&database.pool).await == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(30), listening).await.expect("now there is something to listen to");
    catalog.register(&new("bank/pay", amounts("number"))).await.unwrap();
    following.until(2).await;
    assert_eq!(following.schemas.check(&message(json!({"amount": 1.5}))).await.unwrap(), Some(2));
    following.stop().await;
}

#[tokio::test]
async fn changes_are_found_after_the_connection_was_cut_and_without_beats() {
    let database = database().await;
    let catalog = SchemaCatalog::new(database.pool.clone());
    catalog.register(&new("bank/pay", amounts("integer"))).await.unwrap();
    let following = Following::start(&database.pool, |follower| follower);
    following.until(1).await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and query ilike 'listen%'";
    sqlx::query(cut).execute(&database.pool).await.unwrap();
    catalog.register(&new("bank/pay", amounts("number"))).await.unwrap();
    following.until(2).await;
    assert!(catalog.set_compatibility(&subject("bank/pay"), Compatibility::None, "test").await.unwrap());
    following.until(3).await;
    following.stop().await;
}

#[tokio::test]
async fn a_schema_that_came_past_the_library_and_cannot_be_used_is_told_apart() {
    let database = database().await;
    let register = "select r.outcome from registry.register_schema('bank', 'pay', 'request', '{\"type\": \"objekt\"}', 'x', 0, 'none') as r";
    sqlx::query(register).execute(&database.pool).await.unwrap();
    let schemas = SchemaRegistry::new(&Registry::new(database.pool.clone()));
    let outcome = schemas.check(&message(json!({}))).await;
    assert!(
        matches!(&outcome, Err(unusable @ NotChecked::Unusable { version: 1, .. }) if !unusable.is_final()),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn without_a_database_nothing_new_is_let_in_and_what_is_claimed_is_judged_by_memory() {
    let database = database().await;
    SchemaCatalog::new(database.pool.clone()).register(&new("bank/pay", amounts("integer"))).await.unwrap();
    let pool = database.another_pool();
    let never_fresh = SchemaRegistry::with_max_staleness(&Registry::new(pool.clone()), Duration::ZERO);
    let empty = SchemaRegistry::new(&Registry::new(pool.clone()));
    let good = message(json!({"amount": 1}));
    assert_eq!(never_fresh.check(&good).await.unwrap(), Some(1));
    pool.close().await;
    for schemas in [&never_fresh, &empty] {
        let outcome = schemas.check(&good).await;
        assert!(matches!(&outcome, Err(away @ NotChecked::Unavailable(_)) if !away.is_final()), "{outcome:?}");
    }
    never_fresh.check_claimed(&ROUTE, &good.payload, &Map::new()).await.unwrap();
    refused(never_fresh.check_claimed(&ROUTE, &json!({}), &Map::new()).await);
    assert_eq!(never_fresh.check_reply(&ROUTE, &json!({})).await.unwrap(), None);
    let outcome = empty.check_claimed(&ROUTE, &good.payload, &Map::new()).await;
    assert!(matches!(outcome, Err(NotChecked::Unavailable(_))), "there is nothing to judge by: {outcome:?}");
}
