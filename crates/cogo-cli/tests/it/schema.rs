//! Migrations, the doctor and the list of agents.

use cogo_registry_core::Registry;
use serde_json::Value;

use crate::support::{Cogo, registration};

#[tokio::test]
async fn migrate_says_what_it_applied_and_does_nothing_twice() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let refused = cogo.run(&["send", "rag", "embed", "--json"]).await.expect(4);
    assert!(refused.problem()["hint"].as_str().unwrap().contains("cogo migrate"));

    let applied = cogo.run(&["migrate", "--json"]).await.expect(0).json();
    assert_eq!(applied["applied"].as_array().unwrap().len(), cogo_db::MIGRATOR.iter().count());
    assert!(applied["schema"].as_i64().unwrap() > 20_260_000_000_000);
    let again = cogo.run(&["migrate"]).await.expect(0);
    assert!(again.stdout.starts_with("nothing to apply\nschema "), "{again:?}");
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
}

#[tokio::test]
async fn a_build_that_is_older_than_the_schema_says_so() {
    let database = cogo_test_support::database().await;
    sqlx::query(
        "insert into public._sqlx_migrations (version, description, success, checksum, execution_time)
         values (29991231000000, 'of a later build', true, '', 0)",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let cogo = Cogo::on(&database.url);
    let refused = cogo.run(&["migrate"]).await.expect(4).stderr;
    assert!(refused.contains("older than the schema") && refused.contains("newer cogo"), "{refused}");
    // it works all the same
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
}

#[tokio::test]
async fn doctor_judges_the_database() {
    let database = cogo_test_support::database().await;
    let report = Cogo::on(&database.url).run(&["doctor", "--json"]).await.json();
    let verdict = |name: &str| verdict_of(&report, name);
    for name in ["database version", "schema", "clock", "connections"] {
        assert_eq!(verdict(name).as_deref(), Some("ok"), "{report}");
    }
    for name in ["programs", "postgres programs", "disk", "ports"] {
        assert!(verdict(name).is_some(), "{name}: {report}");
    }

    let empty = cogo_test_support::empty_database().await;
    let ended = Cogo::on(&empty.url).run(&["doctor", "--json"]).await.expect(1);
    assert_eq!(verdict_of(&ended.json(), "schema").as_deref(), Some("fail"));
}

fn verdict_of(report: &Value, name: &str) -> Option<String> {
    let check = report["checks"].as_array()?.iter().find(|check| check["name"] == name)?;
    Some(check["verdict"].as_str()?.to_owned())
}

#[tokio::test]
async fn agents_are_listed_with_state_and_place_and_the_ended_ones_on_request() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let registration = registration("rag", "rag-embed", 0);
    let membership = registry.register(&registration).await.unwrap();
    registry.activate(membership.instance_id).await.unwrap();
    registry.beat(&membership, 1, 3).await.unwrap();

    let cogo = Cogo::on(&database.url);
    let listed = cogo.run(&["agents", "--json"]).await.expect(0).json();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["state"], &listed[0]["in_flight"]),
        (&Value::from("rag-embed"), &Value::from("active"), &Value::from(3))
    );
    let table = cogo.run(&["agents"]).await.expect(0).stdout;
    for expected in ["rag-embed/0", "1.2.3", "active", "testhost"] {
        assert!(table.contains(expected), "{expected}: {table}");
    }

    registry.deregister(membership.instance_id, "drained").await.unwrap();
    assert_eq!(cogo.run(&["agents", "--json"]).await.expect(0).json(), Value::Array(Vec::new()));
    let ended = cogo.run(&["agents", "--ended", "5"]).await.expect(0);
    assert!(ended.stdout.contains("terminated: drained"), "{ended:?}");
}
