//! A fleet whose database role is a worker's and not the owner's: everything but migrating works.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::Cogo;

/// A login that becomes `service_role` with every connection, as docs/operations.md has it; answers its name and address.
async fn worker(database: &cogo_test_support::TestDatabase) -> (String, String) {
    let name = format!("worker_{}", Uuid::new_v4().simple());
    for statement in [
        format!("create role {name} login noinherit password 'secret' in role service_role"),
        format!("alter role {name} set role = 'service_role'"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&database.pool).await.unwrap();
    }
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    url.set_username(&name).unwrap();
    url.set_password(Some("secret")).unwrap();
    (name, url.to_string())
}

#[tokio::test]
async fn a_worker_runs_a_fleet_and_steers_the_bus_but_does_not_migrate() {
    let database = cogo_test_support::database().await;
    let (name, url) = worker(&database).await;
    let cogo = Cogo::on(&url);
    let list = cogo.list_of(&[("a-one", "answering_process", "pool = { max = 2 }")], "");
    cogo.run(&["up", "--detach", "--processes", &list]).await.expect(0);
    cogo.run(&["scale", "a-one", "2"]).await.expect(0);
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
    for words in [
        &["status"][..],
        &["tree"],
        &["agents"],
        &["route", "pause", "rag/embed"],
        &["route", "list"],
        &["schedule", "list"],
        &["dlq", "list"],
    ] {
        cogo.run(words).await.expect(0);
    }
    cogo.run(&["down"]).await.expect(0);
    let refused = cogo.run(&["migrate"]).await;
    assert!(refused.code == 5 && refused.stderr.contains("permission denied"), "{refused:?}");
    assert!(refused.stderr.contains("owner of the schema"), "{refused:?}");
    sqlx::query(AssertSqlSafe(format!("drop role {name}"))).execute(&database.pool).await.unwrap();
}

#[tokio::test]
async fn a_worker_before_the_schema_is_told_who_can_bring_it() {
    let database = cogo_test_support::database().await;
    let (name, url) = worker(&database).await;
    sqlx::query(
        "delete from public._sqlx_migrations where version = (select max(version) from public._sqlx_migrations)",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let cogo = Cogo::on(&url);
    let list = cogo.list_of(&[("a-one", "answering_process", "")], "");
    let refused = cogo.run(&["up", "--processes", &list]).await.expect(4);
    assert!(refused.stderr.contains("cogo migrate"), "{refused:?}");
    sqlx::query(AssertSqlSafe(format!("drop role {name}"))).execute(&database.pool).await.unwrap();
}

#[tokio::test]
async fn a_login_without_grants_is_told_which_it_needs() {
    let database = cogo_test_support::database().await;
    let name = format!("stranger_{}", Uuid::new_v4().simple());
    sqlx::query(AssertSqlSafe(format!("create role {name} login password 'secret'")))
        .execute(&database.pool)
        .await
        .unwrap();
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    url.set_username(&name).unwrap();
    url.set_password(Some("wrong")).unwrap();
    let refused = Cogo::on(url.as_str()).run(&["dlq", "ls"]).await.expect(5).stderr;
    assert!(refused.contains("the password in DATABASE_URL"), "{refused}");
    url.set_password(Some("secret")).unwrap();
    let cogo = Cogo::on(url.as_str());
    let refused = cogo.run(&["dlq", "ls"]).await.expect(5).stderr;
    assert!(refused.contains("grant service_role to LOGIN") && !refused.contains("at line"), "{refused}");
    let status = cogo.run(&["status"]).await.expect(7).stdout;
    assert!(status.contains("could not be read") && status.contains("grant service_role to LOGIN"), "{status}");
    assert!(!status.contains("too old"), "{status}");
    sqlx::query(AssertSqlSafe(format!("drop role {name}"))).execute(&database.pool).await.unwrap();
}
