//! Rows of files and their chunks.

use std::collections::HashMap;

use sqlx::{PgConnection, Row};

use super::prepare::{PreparedChunk, PreparedFile};

/// Totals of chunks that came or went.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    pub(super) chunks: i64,
    pub(super) tokens: i64,
}

/// A stored chunk as its postings need it.
pub(super) struct StoredChunk<'file> {
    pub(super) chunk_id: i64,
    pub(super) source_id: i64,
    pub(super) prepared: &'file PreparedChunk,
}

/// Removes the chunks of these files and says how much they were.
pub(super) async fn delete(
    connection: &mut PgConnection,
    tenant: &str,
    sources: &[i64],
) -> Result<Totals, sqlx::Error> {
    let row = sqlx::query(
        "with gone as (
           delete from public.code_vectors
            where tenant = $1 and source_id = any($2)
           returning token_count),
         gone_prose as (
           delete from public.vector_documents
            where tenant = $1 and source_id = any($2)
           returning token_count)
         select count(*), coalesce(sum(token_count), 0)::bigint
           from (select token_count from gone union all select token_count from gone_prose) as both_kinds",
    )
    .bind(tenant)
    .bind(sources)
    .fetch_one(connection)
    .await?;
    Ok(Totals { chunks: row.try_get(0)?, tokens: row.try_get(1)? })
}

/// Writes the files' rows, keeping the key of one that is already there; keys by path.
pub(super) async fn upsert_sources(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    files: &[PreparedFile],
) -> Result<HashMap<String, i64>, sqlx::Error> {
    let paths: Vec<&str> = files.iter().map(|file| file.entry.path.as_str()).collect();
    let languages: Vec<&str> = files.iter().map(|file| file.entry.language.name()).collect();
    let bytes: Vec<i64> = files.iter().map(|file| file.entry.bytes.cast_signed()).collect();
    let hashes: Vec<&[u8]> = files.iter().map(|file| file.entry.sha256.as_slice()).collect();
    let counts: Vec<i32> = files.iter().map(|file| count(file.chunks.len())).collect();
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "insert into public.rag_sources
                (tenant, scope_id, path, language, bytes, content_sha256, chunk_count, term_ids)
         select $1, $2, path, language, bytes, content_sha256, chunk_count, '{}'
           from unnest($3::text[], $4::text[], $5::bigint[], $6::bytea[], $7::integer[])
                as f (path, language, bytes, content_sha256, chunk_count)
         on conflict (tenant, scope_id, path) do update
            set language = excluded.language, bytes = excluded.bytes, content_sha256 = excluded.content_sha256,
                chunk_count = excluded.chunk_count, term_ids = excluded.term_ids, indexed_at = clock_timestamp()
         returning path, source_id",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(paths)
    .bind(languages)
    .bind(bytes)
    .bind(hashes)
    .bind(counts)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Writes the chunks of the files and gives each its key.
pub(super) async fn insert<'file>(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    files: &'file [PreparedFile],
    sources: &HashMap<String, i64>,
) -> Result<Vec<StoredChunk<'file>>, sqlx::Error> {
    let total: i32 = files.iter().map(|file| count(file.chunks.len())).sum();
    let ids: Vec<i64> =
        sqlx::query_scalar("select nextval('public.rag_chunk_id') from generate_series(1, $1::integer)")
            .bind(total)
            .fetch_all(&mut *connection)
            .await?;
    let mut ids = ids.into_iter();
    let (mut code, mut prose, mut stored) = (Columns::default(), Columns::default(), Vec::new());
    for file in files {
        let Some(source_id) = sources.get(&file.entry.path).copied() else { continue };
        let columns = if file.entry.language.is_prose() { &mut prose } else { &mut code };
        for prepared in &file.chunks {
            let Some(chunk_id) = ids.next() else { break };
            columns.push(chunk_id, source_id, prepared);
            stored.push(StoredChunk { chunk_id, source_id, prepared });
        }
    }
    insert_code(connection, tenant, scope_id, code).await?;
    insert_prose(connection, tenant, scope_id, prose).await?;
    Ok(stored)
}

/// One array per column, as `unnest` takes them.
#[derive(Default)]
struct Columns<'file> {
    chunk_ids: Vec<i64>,
    source_ids: Vec<i64>,
    parts: Vec<i32>,
    kinds: Vec<&'static str>,
    symbols: Vec<Option<&'file str>>,
    qualified_names: Vec<Option<&'file str>>,
    headings: Vec<Option<&'file str>>,
    start_lines: Vec<i32>,
    end_lines: Vec<i32>,
    contents: Vec<&'file str>,
    token_counts: Vec<i32>,
    hashes: Vec<&'file [u8]>,
}

impl<'file> Columns<'file> {
    fn push(&mut self, chunk_id: i64, source_id: i64, prepared: &'file PreparedChunk) {
        let chunk = &prepared.chunk;
        self.chunk_ids.push(chunk_id);
        self.source_ids.push(source_id);
        self.parts.push(chunk.part.cast_signed());
        self.kinds.push(chunk.kind);
        self.symbols.push(chunk.symbol.as_deref());
        self.qualified_names.push(chunk.qualified_name.as_deref());
        self.headings.push(chunk.heading.as_deref());
        self.start_lines.push(chunk.start_line.cast_signed());
        self.end_lines.push(chunk.end_line.cast_signed());
        self.contents.push(&chunk.text);
        self.token_counts.push(prepared.token_count);
        self.hashes.push(&prepared.text_sha256);
    }
}

async fn insert_code(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    columns: Columns<'_>,
) -> Result<(), sqlx::Error> {
    if columns.chunk_ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into public.code_vectors
                (tenant, scope_id, chunk_id, source_id, part, kind, symbol, qualified_name, start_line, end_line,
                 content, token_count, text_sha256)
         select $1, $2, chunk_id, source_id, part, kind, symbol, qualified_name, start_line, end_line,
                content, token_count, text_sha256
           from unnest($3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::text[], $8::text[],
                       $9::integer[], $10::integer[], $11::text[], $12::integer[], $13::bytea[])
                as c (chunk_id, source_id, part, kind, symbol, qualified_name, start_line, end_line,
                      content, token_count, text_sha256)",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(columns.chunk_ids)
    .bind(columns.source_ids)
    .bind(columns.parts)
    .bind(columns.kinds)
    .bind(columns.symbols)
    .bind(columns.qualified_names)
    .bind(columns.start_lines)
    .bind(columns.end_lines)
    .bind(columns.contents)
    .bind(columns.token_counts)
    .bind(columns.hashes)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_prose(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    columns: Columns<'_>,
) -> Result<(), sqlx::Error> {
    if columns.chunk_ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into public.vector_documents
                (tenant, scope_id, chunk_id, source_id, part, heading, start_line, end_line,
                 content, token_count, text_sha256)
         select $1, $2, chunk_id, source_id, part, heading, start_line, end_line,
                content, token_count, text_sha256
           from unnest($3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::integer[], $8::integer[],
                       $9::text[], $10::integer[], $11::bytea[])
                as d (chunk_id, source_id, part, heading, start_line, end_line, content, token_count, text_sha256)",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(columns.chunk_ids)
    .bind(columns.source_ids)
    .bind(columns.parts)
    .bind(columns.headings)
    .bind(columns.start_lines)
    .bind(columns.end_lines)
    .bind(columns.contents)
    .bind(columns.token_counts)
    .bind(columns.hashes)
    .execute(connection)
    .await?;
    Ok(())
}

fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}
