//! Reads what is indexed: the names of collections, and the lines that citations show. Writes nothing.

use std::collections::{BTreeMap, HashMap};

use cogo_contracts::Citation;
use sqlx::PgPool;

/// Lines of a file of the code graph.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lines {
    pub(crate) path: String,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

#[derive(sqlx::FromRow)]
struct Piece {
    path: String,
    sha256: String,
    start_line: i32,
    content: String,
}

/// Indexed files by path: hash and lines by number.
#[derive(Default)]
struct File {
    sha256: String,
    lines: BTreeMap<u32, String>,
}

/// Collections of the tenant with their number of chunks, by name.
pub(crate) async fn collections(pool: &PgPool, tenant: &str) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "select collection, chunk_count
           from public.rag_scopes
          where tenant = $1
          order by collection",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await
}

/// The citation of each place; none where the lines are not indexed, or where graph and index read different contents
/// of the file, so that the graph's line numbers cannot be trusted.
pub(crate) async fn cite(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    places: &[Lines],
) -> Result<Vec<Option<Citation>>, sqlx::Error> {
    let mut files: HashMap<String, File> = HashMap::new();
    for piece in pieces(pool, tenant, collection, places).await? {
        let file = files.entry(piece.path).or_default();
        file.sha256 = piece.sha256;
        let numbers = piece.start_line.unsigned_abs()..;
        file.lines.extend(numbers.zip(piece.content.lines().map(str::to_owned)));
    }
    let citation = |place: &Lines| {
        let file = files.get(&place.path)?;
        let lines: Option<Vec<&str>> =
            (place.start..=place.end).map(|number| file.lines.get(&number).map(String::as_str)).collect();
        Some(Citation {
            path: place.path.clone(),
            start: place.start,
            end: place.end,
            collection: collection.to_owned(),
            sha256: file.sha256.clone(),
            text: lines.filter(|lines| !lines.is_empty())?.join("\n"),
        })
    };
    Ok(places.iter().map(citation).collect())
}

async fn pieces(pool: &PgPool, tenant: &str, collection: &str, places: &[Lines]) -> Result<Vec<Piece>, sqlx::Error> {
    let paths: Vec<&str> = places.iter().map(|place| place.path.as_str()).collect();
    let number = |line: u32| i32::try_from(line).unwrap_or(i32::MAX);
    let starts: Vec<i32> = places.iter().map(|place| number(place.start)).collect();
    let ends: Vec<i32> = places.iter().map(|place| number(place.end)).collect();
    sqlx::query_as(
        "select distinct f.path, encode(f.content_sha256, 'hex') as sha256, c.start_line, c.content
           from unnest($3::text[], $4::int[], $5::int[]) as w (path, first_line, last_line)
           join public.rag_scopes as s on s.tenant = $1 and s.collection = $2
           join public.rag_sources as f
             on f.tenant = s.tenant and f.scope_id = s.scope_id and f.path = w.path
           -- the graph's lines hold only for the content that it was built from
           join public.kg_files as k
             on k.tenant = f.tenant and k.repo = s.collection and k.path = f.path
            and k.content_sha256 = f.content_sha256
           join public.code_vectors as c
             on c.tenant = f.tenant and c.source_id = f.source_id
            and c.start_line <= w.last_line and c.end_line >= w.first_line",
    )
    .bind(tenant)
    .bind(collection)
    .bind(paths)
    .bind(starts)
    .bind(ends)
    .fetch_all(pool)
    .await
}
