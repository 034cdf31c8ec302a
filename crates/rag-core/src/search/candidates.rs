//! Rows of the chunks that are ranked and returned.

use std::collections::HashMap;

use sqlx::PgConnection;

/// Definitions looked up by name; more share the name than anyone could mean.
const MAX_NAMED: i64 = 200;
/// Chunks taken from files that the question names.
const MAX_OF_NAMED_FILES: i64 = 60;

/// What ranking needs to know of a chunk.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Candidate {
    pub(super) chunk_id: i64,
    pub(super) source_id: i64,
    pub(super) collection: String,
    pub(super) path: String,
    pub(super) language: String,
    pub(super) kind: String,
    pub(super) symbol: Option<String>,
    pub(super) qualified_name: Option<String>,
    pub(super) heading: Option<String>,
    pub(super) part: i32,
    pub(super) start_line: i32,
    pub(super) end_line: i32,
    pub(super) content_sha256: Vec<u8>,
    pub(super) text_sha256: Vec<u8>,
    pub(super) embedding: Option<Vec<f32>>,
}

impl Candidate {
    /// Whether it is cut from prose rather than from code.
    pub(super) fn is_prose(&self) -> bool {
        self.kind == "section"
    }
}

/// Starts of definitions with one of these lower-case names.
pub(super) async fn named(
    connection: &mut PgConnection,
    tenant: &str,
    scopes: &[i64],
    names: &[String],
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select chunk_id
           from public.code_vectors
          where tenant = $1 and scope_id = any($2) and lower(symbol) = any($3) and part = 0 and kind <> 'members'
          order by chunk_id
          limit $4",
    )
    .bind(tenant)
    .bind(scopes)
    .bind(names)
    .bind(MAX_NAMED)
    .fetch_all(connection)
    .await
}

/// Chunks of the files whose path ends like one of these.
pub(super) async fn of_files(
    connection: &mut PgConnection,
    tenant: &str,
    scopes: &[i64],
    paths: &[String],
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "with files as (
           select f.source_id
             from public.rag_sources f
            where f.tenant = $1 and f.scope_id = any($2)
              and exists (select from unnest($3::text[]) as w (ending)
                           where f.path = w.ending or right(f.path, length(w.ending) + 1) = '/' || w.ending
                              or strpos('/' || f.path, '/' || w.ending || '/') > 0))
         select chunk_id
           from (select chunk_id from public.code_vectors
                  where tenant = $1 and source_id in (select source_id from files)
                 union all
                 select chunk_id from public.vector_documents
                  where tenant = $1 and source_id in (select source_id from files)) as c
          order by chunk_id
          limit $4",
    )
    .bind(tenant)
    .bind(scopes)
    .bind(paths)
    .bind(MAX_OF_NAMED_FILES)
    .fetch_all(connection)
    .await
}

/// The rows of these chunks; vectors only where `embedder` made them.
pub(super) async fn load(
    connection: &mut PgConnection,
    tenant: &str,
    chunk_ids: &[i64],
    embedder: Option<&str>,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(
        "with c as (
           select tenant, scope_id, source_id, chunk_id, kind, symbol, qualified_name, null::text as heading, part,
                  start_line, end_line, text_sha256, case when embedder = $3 then embedding end as embedding
             from public.code_vectors
            where tenant = $1 and chunk_id = any($2)
           union all
           select tenant, scope_id, source_id, chunk_id, 'section', null, null, heading, part,
                  start_line, end_line, text_sha256, case when embedder = $3 then embedding end
             from public.vector_documents
            where tenant = $1 and chunk_id = any($2))
         select c.chunk_id, c.source_id, s.collection, f.path, f.language, c.kind, c.symbol, c.qualified_name,
                c.heading, c.part, c.start_line, c.end_line, f.content_sha256, c.text_sha256, c.embedding
           from c
          cross join lateral (
                select path, language, content_sha256
                  from public.rag_sources
                 where tenant = c.tenant and source_id = c.source_id
                offset 0) as f
           join public.rag_scopes s on s.tenant = c.tenant and s.scope_id = c.scope_id",
    )
    .bind(tenant)
    .bind(chunk_ids)
    .bind(embedder)
    .fetch_all(connection)
    .await
}

/// The lines of these chunks.
pub(super) async fn texts(
    connection: &mut PgConnection,
    tenant: &str,
    chunk_ids: &[i64],
) -> Result<HashMap<i64, String>, sqlx::Error> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "select chunk_id, content from public.code_vectors where tenant = $1 and chunk_id = any($2)
         union all
         select chunk_id, content from public.vector_documents where tenant = $1 and chunk_id = any($2)",
    )
    .bind(tenant)
    .bind(chunk_ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}
