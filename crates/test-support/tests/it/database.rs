//! Each test has a database of its own, quickly, and leaves none behind.

use cogo_db::SchemaState;
use cogo_test_support::{database, empty_database};
use sqlx::{Connection, PgConnection, PgPool};

async fn name_of(pool: &PgPool) -> String {
    sqlx::query_scalar("select current_database()::text").fetch_one(pool).await.expect("name of the database")
}

#[tokio::test]
async fn a_test_database_has_every_migration() {
    let database = database().await;
    let state = cogo_db::schema_state(&database.pool).await.expect("schema state");
    assert!(matches!(state, SchemaState::Fits(_)), "{state:?}");
    let applied: i64 = sqlx::query_scalar("select count(*) from public._sqlx_migrations")
        .fetch_one(&database.pool)
        .await
        .expect("applied migrations");
    assert_eq!(applied, i64::try_from(cogo_db::MIGRATOR.iter().count()).expect("few migrations"));
}

#[tokio::test]
async fn an_empty_database_has_no_tables() {
    let database = empty_database().await;
    let tables: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname = 'public'")
        .fetch_one(&database.pool)
        .await
        .expect("tables");
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn databases_made_at_once_share_nothing() {
    let made = databases_at_once(8).await;
    for database in &made {
        sqlx::query("create table public.only_here (id bigint)").execute(&database.pool).await.expect("own table");
    }
    let mut names = Vec::new();
    for database in &made {
        names.push(name_of(&database.pool).await);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 8);
}

async fn databases_at_once(count: usize) -> Vec<cogo_test_support::TestDatabase> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        tasks.spawn(database());
    }
    tasks.join_all().await
}

#[tokio::test]
async fn a_dropped_database_is_removed_although_connections_are_open() {
    let observer = empty_database().await;
    let database = database().await;
    let name = name_of(&database.pool).await;
    let open = PgConnection::connect(&database.url).await.expect("connection");
    drop(database);
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&observer.pool)
        .await
        .expect("databases");
    assert!(!exists, "{name} is still there");
    drop(open);
}

#[tokio::test]
async fn databases_are_copies_of_one_migrated_template() {
    let mut times_of_migration = Vec::new();
    for database in databases_at_once(2).await {
        let installed_on: Vec<String> =
            sqlx::query_scalar("select installed_on::text from public._sqlx_migrations order by version")
                .fetch_all(&database.pool)
                .await
                .expect("applied migrations");
        times_of_migration.push(installed_on);
    }
    assert!(!times_of_migration[0].is_empty());
    assert_eq!(times_of_migration[0], times_of_migration[1], "each database was migrated anew, which is slow");
}
