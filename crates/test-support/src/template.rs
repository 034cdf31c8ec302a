//! Makes databases quickly: a migrated template, once per state of the migrations, then copies of it.

use std::path::Path;

use anyhow::Context;
use cogo_db::{MIGRATOR, PoolSettings};
use cogo_pg_local::{Cluster, path_key};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::run::shared_cluster;

/// Any number does, as long as nothing else in the test cluster takes this lock.
const TEMPLATE_LOCK: i64 = 0x636f_676f;
/// Ours, already there, and nobody connects to it.
const EMPTY_TEMPLATE: &str = "template1";

/// Makes an empty database and gives its name.
pub(crate) async fn empty_copy(cluster: &Cluster) -> anyhow::Result<String> {
    copy(cluster, EMPTY_TEMPLATE).await
}

/// Makes a migrated database in the shared cluster and gives its name.
pub(crate) async fn migrated_copy() -> anyhow::Result<String> {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let cluster = shared_cluster().await?;
    let template = TEMPLATE.get_or_try_init(|| Box::pin(ensure_template(cluster))).await?;
    copy(cluster, template).await
}

/// Removes a database, whoever is still connected to it.
pub(crate) async fn remove(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let mut connection = administer(cluster).await?;
    let statement = format!("drop database if exists \"{name}\" with (force)");
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

async fn copy(cluster: &Cluster, template: &str) -> anyhow::Result<String> {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let mut connection = administer(cluster).await?;
    let statement = format!("create database \"{name}\" template \"{template}\"");
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.context("copy the template")?;
    connection.close().await?;
    Ok(name)
}

/// The template's name; made under another name first, so that it is never seen half migrated.
async fn ensure_template(cluster: &Cluster) -> anyhow::Result<String> {
    let name = template_name();
    let mut connection = administer(cluster).await?;
    sqlx::query("select pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut connection).await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        let fresh = empty_copy(cluster).await?;
        migrate(&cluster.url(&fresh)).await?;
        let rename = format!("alter database \"{fresh}\" rename to \"{name}\"");
        sqlx::query(AssertSqlSafe(rename)).execute(&mut connection).await?;
        // A copy needs a template that nobody is connected to.
        let close = format!("alter database \"{name}\" allow_connections false");
        sqlx::query(AssertSqlSafe(close)).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(name)
}

/// Brings a database up to this build's schema.
pub(crate) async fn migrate(url: &str) -> anyhow::Result<()> {
    let pool = cogo_db::connect(&PoolSettings::new(url, "test-migrations"))?;
    let outcome = cogo_db::migrate(&pool).await.context("migrate the template of the test databases");
    pool.close().await;
    outcome
}

fn template_name() -> String {
    let versions = MIGRATOR.iter().map(|migration| format!("{}:{:?};", migration.version, migration.checksum));
    format!("template_{}", path_key(Path::new(&versions.collect::<String>())))
}

async fn administer(cluster: &Cluster) -> anyhow::Result<PgConnection> {
    PgConnection::connect(&cluster.url("postgres")).await.context("connect to the Postgres that tests use")
}
