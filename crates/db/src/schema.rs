//! Migrations, embedded at build time, and the version check of every start.

use std::time::Duration;

use sqlx::{
    Connection, PgPool,
    migrate::{MigrateError, Migrator},
};

/// Every migration of this build, in order.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// How often a migration is tried that stood in the way of others, and the pause before the second time; it grows by itself.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Why the schema could not be brought up or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A migration did not apply.
    #[error("Migration did not apply")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The database did not answer.
    #[error("Schema version could not be read")]
    Database(#[source] sqlx::Error),
}

/// How the database's schema stands to this build's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// Both are at this version, or the database is newer (older builds run against newer schemas).
    Fits(i64),
    /// The database lacks migrations that this build needs; run `cogo migrate`.
    Behind {
        /// Newest migration in the database, 0 for none.
        have: i64,
        /// Newest migration of this build.
        need: i64,
    },
}

/// Applies all pending migrations under sqlx's advisory lock; safe to run twice and at once. One that a deadlock with those who
/// work meanwhile has undone is tried again.
///
/// # Errors
/// When a migration fails or the database is not reachable.
pub async fn migrate(pool: &PgPool) -> Result<(), Error> {
    let mut tried = 1;
    loop {
        match migrate_once(pool).await {
            Err(error) if tried < TRIES && stood_in_the_way(&error) => tokio::time::sleep(PAUSE * tried).await,
            outcome => return outcome.map_err(Error::Migrate),
        }
        tried += 1;
    }
}

/// On a connection of its own: it is closed with all that it still holds, such as sqlx's lock after a failure.
async fn migrate_once(pool: &PgPool) -> Result<(), MigrateError> {
    let mut connection = pool.acquire().await?.detach();
    // sqlx keeps its list in the first schema of the path, and this build looks for it in public
    sqlx::query(
        "select set_config('search_path', 'public, ' || current_setting('search_path'), false),
                set_config('standard_conforming_strings', 'on', false)",
    )
    .execute(&mut connection)
    .await?;
    MIGRATOR.run_direct(None, &mut connection, false).await?;
    connection.close().await?;
    Ok(())
}

fn stood_in_the_way(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return false };
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(&*code, "40P01" | "40001" | "55P03"))
}

/// Compares the newest applied migration with the newest one of this build.
///
/// # Errors
/// When the database cannot be asked.
pub async fn schema_state(pool: &PgPool) -> Result<SchemaState, Error> {
    let need = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    let migrated: bool = sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null")
        .fetch_one(pool)
        .await
        .map_err(Error::Database)?;
    let have: i64 = if migrated {
        sqlx::query_scalar("select coalesce(max(version), 0) from public._sqlx_migrations where success")
            .fetch_one(pool)
            .await
            .map_err(Error::Database)?
    } else {
        0
    };
    if have < need { Ok(SchemaState::Behind { have, need }) } else { Ok(SchemaState::Fits(have)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn migrations_are_found_again_whatever_the_search_path_begins_with() {
        let database = cogo_test_support::empty_database().await;
        sqlx::raw_sql(
            "create schema app;
             do $$ begin
               execute format('alter database %I set search_path = app, public', current_database());
               execute format('alter database %I set standard_conforming_strings = off', current_database());
             end $$",
        )
        .execute(&database.pool)
        .await
        .unwrap();
        let pool = database.another_pool();
        migrate(&pool).await.unwrap();
        assert!(matches!(schema_state(&pool).await.unwrap(), SchemaState::Fits(_)));
        migrate(&pool).await.unwrap();
    }
}
