//! Gives vectors to chunks that have none of the embedder in use.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use super::{
    Error,
    prepare::{embedded_text, name_of},
    scope,
};
use crate::embed::{EmbedError, Embedder};

/// What one round of embedding did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedReport {
    /// Chunks that got a vector.
    pub embedded: usize,
    /// How many of them needed no call, because the same text had been embedded before.
    pub from_cache: usize,
    /// Vectors that the embedder made, which is what a provider charges for: one for each text that was new.
    pub computed: usize,
    /// Whether chunks without a vector may be left; call again.
    pub more: bool,
}

/// Embeds at most `limit` waiting chunks of these files: those without a vector or with one of another embedder.
///
/// Callers at once compute nothing twice as long as they name different files and no text stands in several of them.
/// Two deliveries of one message at once may both compute the same vectors: nothing is held while the embedder works,
/// neither a transaction nor a lock, since a provider may take seconds. The vectors are equal, so the cost is the call.
///
/// # Errors
/// When the embedder fails or the database refuses; chunks of earlier calls keep their vectors.
pub async fn embed_files(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    embedder: &dyn Embedder,
    paths: &[String],
    limit: u32,
) -> Result<EmbedReport, Error> {
    let pending = pending_of_files(pool, tenant, collection, embedder.identity(), paths, limit).await?;
    embed(pool, tenant, collection, embedder, &pending, limit).await
}

/// Embeds at most `limit` waiting chunks of the whole collection: what [`embed_files`] left over, or everything after
/// the embedder has changed. Callers at once may compute the same vectors, so call it from one place at a time.
///
/// # Errors
/// When the embedder fails or the database refuses; chunks of earlier calls keep their vectors.
pub async fn embed_pending(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    embedder: &dyn Embedder,
    limit: u32,
) -> Result<EmbedReport, Error> {
    let pending = pending_of_collection(pool, tenant, collection, embedder.identity(), limit).await?;
    embed(pool, tenant, collection, embedder, &pending, limit).await
}

async fn embed(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    embedder: &dyn Embedder,
    pending: &[PendingChunk],
    limit: u32,
) -> Result<EmbedReport, Error> {
    let Some(first) = pending.first() else { return Ok(EmbedReport::default()) };
    let mut texts: BTreeMap<&[u8], String> = BTreeMap::new();
    for chunk in pending {
        let text = || embedded_text(name_of(chunk.qualified_name.as_deref(), chunk.heading.as_deref()), &chunk.content);
        texts.entry(&chunk.text_sha256).or_insert_with(text);
    }
    let hashes: Vec<&[u8]> = texts.keys().copied().collect();
    let mut vectors = cached(pool, tenant, embedder, &hashes).await?;
    let (missing, missing_texts): (Vec<&[u8]>, Vec<String>) =
        texts.into_iter().filter(|(sha256, _)| !vectors.contains_key(*sha256)).unzip();
    let from_cache = pending.iter().filter(|chunk| vectors.contains_key(&chunk.text_sha256)).count();
    let computed = missing.len();
    if !missing.is_empty() {
        let made = checked(embedder, missing_texts).await?;
        remember(pool, tenant, embedder, &missing, &made).await?;
        vectors.extend(missing.iter().map(|sha256| sha256.to_vec()).zip(made));
    }
    let mut transaction = pool.begin().await?;
    scope::lock(&mut transaction, tenant, collection).await?;
    let embedded = write(&mut transaction, tenant, embedder, pending, &vectors).await?;
    scope::change(&mut transaction, tenant, first.scope_id, 0, 0).await?;
    transaction.commit().await?;
    Ok(EmbedReport { embedded, from_cache, computed, more: pending.len() >= limit as usize })
}

#[derive(sqlx::FromRow)]
struct PendingChunk {
    scope_id: i64,
    chunk_id: i64,
    text_sha256: Vec<u8>,
    qualified_name: Option<String>,
    heading: Option<String>,
    content: String,
}

async fn pending_of_collection(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    identity: &str,
    limit: u32,
) -> Result<Vec<PendingChunk>, sqlx::Error> {
    // Two ranges instead of <>, so that the index on embedder finds the few that wait.
    sqlx::query_as(
        "with scope as (select scope_id from public.rag_scopes where tenant = $1 and collection = $2)
         (select c.scope_id, c.chunk_id, c.text_sha256, c.qualified_name, null::text as heading, c.content
            from public.code_vectors c
           where c.tenant = $1 and c.scope_id = (select scope_id from scope)
             and (c.embedder is null or c.embedder < $3 or c.embedder > $3)
           limit $4)
         union all
         (select d.scope_id, d.chunk_id, d.text_sha256, null::text, d.heading, d.content
            from public.vector_documents d
           where d.tenant = $1 and d.scope_id = (select scope_id from scope)
             and (d.embedder is null or d.embedder < $3 or d.embedder > $3)
           limit $4)
         limit $4",
    )
    .bind(tenant)
    .bind(collection)
    .bind(identity)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
}

async fn pending_of_files(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    identity: &str,
    paths: &[String],
    limit: u32,
) -> Result<Vec<PendingChunk>, sqlx::Error> {
    // A path of a message may hold a NUL, which the database would refuse for the whole batch.
    let storable: Vec<&str> = paths.iter().map(String::as_str).filter(|path| !path.contains('\0')).collect();
    // Laterals with offset 0 look the chunks up by their file, also before the tables have statistics.
    sqlx::query_as(
        "with files as (
           select f.source_id
             from public.rag_scopes s
             join public.rag_sources f on f.tenant = s.tenant and f.scope_id = s.scope_id
            where s.tenant = $1 and s.collection = $2 and f.path = any($3))
         select w.scope_id, w.chunk_id, w.text_sha256, w.qualified_name, w.heading, w.content
           from files
          cross join lateral (
                (select c.scope_id, c.chunk_id, c.text_sha256, c.qualified_name, null::text as heading, c.content
                   from public.code_vectors c
                  where c.tenant = $1 and c.source_id = files.source_id and c.embedder is distinct from $4
                 offset 0)
                union all
                (select d.scope_id, d.chunk_id, d.text_sha256, null::text, d.heading, d.content
                   from public.vector_documents d
                  where d.tenant = $1 and d.source_id = files.source_id and d.embedder is distinct from $4
                 offset 0)) as w
          limit $5",
    )
    .bind(tenant)
    .bind(collection)
    .bind(storable)
    .bind(identity)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
}

async fn cached(
    pool: &PgPool,
    tenant: &str,
    embedder: &dyn Embedder,
    hashes: &[&[u8]],
) -> Result<HashMap<Vec<u8>, Vec<f32>>, sqlx::Error> {
    let rows: Vec<(Vec<u8>, Vec<f32>)> = sqlx::query_as(
        "select text_sha256, embedding
           from public.embedding_cache
          where tenant = $1 and embedder = $2 and text_sha256 = any($3)",
    )
    .bind(tenant)
    .bind(embedder.identity())
    .bind(hashes)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Vectors of the texts, refused unless there is one of the right length for each.
async fn checked(embedder: &dyn Embedder, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
    let vectors = embedder.embed(&texts).await?;
    let (expected, dimensions) = (texts.len(), embedder.dimensions());
    if vectors.len() != expected {
        let got = format!("{} vectors", vectors.len());
        return Err(EmbedError::Shape { got, expected: expected.to_string() });
    }
    if let Some(odd) = vectors.iter().find(|vector| vector.len() != dimensions) {
        let got = format!("a vector of {} dimensions", odd.len());
        return Err(EmbedError::Shape { got, expected: dimensions.to_string() });
    }
    Ok(vectors)
}

async fn remember(
    pool: &PgPool,
    tenant: &str,
    embedder: &dyn Embedder,
    hashes: &[&[u8]],
    vectors: &[Vec<f32>],
) -> Result<(), sqlx::Error> {
    // Arrays of arrays cannot be unnested row by row, so the vectors travel end to end and are cut by position.
    sqlx::query(
        "insert into public.embedding_cache (tenant, embedder, text_sha256, embedding)
         select $1, $2, h.text_sha256, ($4::real[])[(h.position - 1) * $5 + 1 : h.position * $5]
           from unnest($3::bytea[]) with ordinality as h (text_sha256, position)
         on conflict (tenant, embedder, text_sha256) do nothing",
    )
    .bind(tenant)
    .bind(embedder.identity())
    .bind(hashes)
    .bind(vectors.concat())
    .bind(embedder.dimensions() as i64)
    .execute(pool)
    .await?;
    Ok(())
}

async fn write(
    connection: &mut PgConnection,
    tenant: &str,
    embedder: &dyn Embedder,
    pending: &[PendingChunk],
    vectors: &HashMap<Vec<u8>, Vec<f32>>,
) -> Result<usize, sqlx::Error> {
    let (mut chunk_ids, mut flat) = (Vec::new(), Vec::new());
    for chunk in pending {
        let Some(vector) = vectors.get(&chunk.text_sha256) else { continue };
        chunk_ids.push(chunk.chunk_id);
        flat.extend_from_slice(vector);
    }
    // A chunk replaced in the meantime has a new id and is simply not found. Laterals with offset 0 look each chunk up
    // by its key, whatever the planner believes about a table that was just filled.
    let written: i64 = sqlx::query_scalar(
        "with made as (
           select v.chunk_id, ($3::real[])[(v.position - 1) * $4 + 1 : v.position * $4] as embedding
             from unnest($2::bigint[]) with ordinality as v (chunk_id, position)),
         code as (
           update public.code_vectors c
              set embedding = made.embedding, embedder = $5
             from made
            cross join lateral (
                  select k.ctid from public.code_vectors k
                   where k.tenant = $1 and k.chunk_id = made.chunk_id
                  offset 0) as found
            where c.ctid = found.ctid
           returning 1),
         prose as (
           update public.vector_documents d
              set embedding = made.embedding, embedder = $5
             from made
            cross join lateral (
                  select k.ctid from public.vector_documents k
                   where k.tenant = $1 and k.chunk_id = made.chunk_id
                  offset 0) as found
            where d.ctid = found.ctid
           returning 1)
         select (select count(*) from code) + (select count(*) from prose)",
    )
    .bind(tenant)
    .bind(chunk_ids)
    .bind(flat)
    .bind(embedder.dimensions() as i64)
    .bind(embedder.identity())
    .fetch_one(connection)
    .await?;
    Ok(usize::try_from(written).unwrap_or(0))
}
