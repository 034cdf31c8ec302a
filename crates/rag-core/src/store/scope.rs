//! Collections: their keys, the lock under which they change, and their totals.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};

use crate::store::Error;

/// Keeps our advisory locks apart from those of others in the same database.
const LOCK_SEED: i64 = 0x7261_6763;

/// What a collection holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct CollectionStatus {
    /// Name of the collection.
    pub collection: String,
    /// Indexed files.
    pub files: i64,
    /// Chunks of those files.
    pub chunks: i64,
    /// Chunks that have a vector.
    pub embedded: i64,
}

/// The collections of a tenant with their number of chunks, by name.
///
/// # Errors
/// When the database cannot be asked.
pub async fn collection_sizes(pool: &PgPool, tenant: &str) -> Result<Vec<(String, i64)>, Error> {
    let sizes = sqlx::query_as(
        "select s.collection, s.chunk_count from public.rag_scopes s where s.tenant = $1 order by s.collection",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await?;
    Ok(sizes)
}

/// The collections of a tenant, by name.
///
/// # Errors
/// When the database cannot be asked.
pub async fn collections(pool: &PgPool, tenant: &str) -> Result<Vec<CollectionStatus>, Error> {
    let statuses = sqlx::query_as(
        "select s.collection,
                (select count(*) from public.rag_sources f
                  where f.tenant = s.tenant and f.scope_id = s.scope_id) as files,
                s.chunk_count as chunks,
                (select count(*) from public.code_vectors c
                  where c.tenant = s.tenant and c.scope_id = s.scope_id and c.embedder is not null)
                + (select count(*) from public.vector_documents d
                  where d.tenant = s.tenant and d.scope_id = s.scope_id and d.embedder is not null) as embedded
           from public.rag_scopes s
          where s.tenant = $1
          order by s.collection",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await?;
    Ok(statuses)
}

/// Key of the collection, if it exists.
pub(super) async fn find(
    connection: &mut PgConnection,
    tenant: &str,
    collection: &str,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select scope_id from public.rag_scopes where tenant = $1 and collection = $2")
        .bind(tenant)
        .bind(collection)
        .fetch_optional(connection)
        .await
}

/// Lets one writer at a time change the collection, until the transaction ends. Locks write no row.
pub(super) async fn lock(connection: &mut PgConnection, tenant: &str, collection: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, $2))")
        .bind(format!("{tenant}/{collection}"))
        .bind(LOCK_SEED)
        .execute(connection)
        .await?;
    Ok(())
}

/// Key of the collection, made if it is new. Call it under [`lock`].
pub(super) async fn ensure(connection: &mut PgConnection, tenant: &str, collection: &str) -> Result<i64, sqlx::Error> {
    if let Some(scope_id) = find(connection, tenant, collection).await? {
        return Ok(scope_id);
    }
    sqlx::query_scalar("insert into public.rag_scopes (tenant, collection) values ($1, $2) returning scope_id")
        .bind(tenant)
        .bind(collection)
        .fetch_one(connection)
        .await
}

/// Adds to the totals and tells caches that something changed.
pub(super) async fn change(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    chunks: i64,
    tokens: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update public.rag_scopes
            set chunk_count = chunk_count + $3,
                token_sum = token_sum + $4,
                version = version + 1,
                updated_at = clock_timestamp()
          where tenant = $1 and scope_id = $2",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(chunks)
    .bind(tokens)
    .execute(connection)
    .await?;
    Ok(())
}
