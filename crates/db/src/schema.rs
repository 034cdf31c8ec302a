//! Migrations, embedded at build time, and the version check of every start.

use sqlx::{PgPool, migrate::Migrator};

/// Every migration of this build, in order.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

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

/// Applies all pending migrations under sqlx's advisory lock; safe to run twice and at once.
///
/// # Errors
/// When a migration fails or the database is not reachable.
pub async fn migrate(pool: &PgPool) -> Result<(), Error> {
    MIGRATOR.run(pool).await.map_err(Error::Migrate)
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
