//! Compares files with the index by hash.

use std::collections::HashMap;

use sqlx::PgPool;

use crate::{store::Error, walk::FileEntry};

/// What has to be done so that the index equals the files.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Paths that are new or whose content differs, in the order of the files.
    pub changed: Vec<String>,
    /// Paths of the index that are no longer among the files.
    pub removed: Vec<String>,
    /// Files that need nothing.
    pub unchanged: usize,
}

/// Compares `files`, all files of the collection, with what is indexed; writes nothing.
///
/// # Errors
/// When the database cannot be asked.
pub async fn plan(pool: &PgPool, tenant: &str, collection: &str, files: &[FileEntry]) -> Result<Plan, Error> {
    let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(
        "select f.path, f.content_sha256
           from public.rag_scopes s
           join public.rag_sources f on f.tenant = s.tenant and f.scope_id = s.scope_id
          where s.tenant = $1 and s.collection = $2",
    )
    .bind(tenant)
    .bind(collection)
    .fetch_all(pool)
    .await?;
    let mut indexed: HashMap<String, Vec<u8>> = rows.into_iter().collect();
    let mut plan = Plan::default();
    for file in files {
        match indexed.remove(&file.path) {
            Some(sha256) if sha256 == file.sha256 => plan.unchanged += 1,
            _ => plan.changed.push(file.path.clone()),
        }
    }
    plan.removed = indexed.into_keys().collect();
    plan.removed.sort_unstable();
    Ok(plan)
}
