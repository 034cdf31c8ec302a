//! `cogo migrate`: brings the database to the schema of this build.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    context::Context,
    database_failure::needs_the_owner,
    failure::{Failure, Kind},
};

/// Apply the pending migrations and say which.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo migrate\n  DATABASE_URL=postgres://localhost/cogo cogo migrate --json")]
pub(crate) struct Migrate {}

impl Migrate {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let pool = context.pool().await?;
        let before = applied(&pool).await.map_err(of_owner)?;
        let spinner = context.output.spinner("migrating");
        cogo_db::migrate(&pool).await?;
        spinner.finish_and_clear();
        let after = applied(&pool).await?;

        let fresh: Vec<_> = cogo_db::MIGRATOR
            .iter()
            .filter(|migration| after.contains(&migration.version) && !before.contains(&migration.version))
            .collect();
        let version = after.last().copied().unwrap_or(0);
        let list: Vec<Value> = fresh
            .iter()
            .map(|migration| json!({"version": migration.version, "description": migration.description}))
            .collect();
        context.output.either(&json!({"applied": list, "schema": version}), || {
            let mut lines: Vec<String> = fresh
                .iter()
                .map(|migration| format!("applied {} {}", migration.version, migration.description))
                .collect();
            if lines.is_empty() {
                lines.push("nothing to apply".to_owned());
            }
            lines.push(format!("schema {version}"));
            lines.join("\n")
        })
    }
}

fn of_owner(failure: Failure) -> Failure {
    if failure.kind == Kind::Auth { needs_the_owner(failure) } else { failure }
}

/// Versions in the database, oldest first.
async fn applied(pool: &PgPool) -> Result<BTreeSet<i64>, Failure> {
    let migrated: bool =
        sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null").fetch_one(pool).await?;
    if !migrated {
        return Ok(BTreeSet::new());
    }
    let versions: Vec<i64> =
        sqlx::query_scalar("select version from public._sqlx_migrations where success").fetch_all(pool).await?;
    Ok(versions.into_iter().collect())
}
