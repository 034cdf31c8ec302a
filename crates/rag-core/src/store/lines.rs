//! Lines of indexed files, for those who know places and want to show what stands there.

use std::collections::{BTreeMap, HashMap};

use sqlx::PgPool;

use super::Error;

/// Lines of an indexed file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lines {
    /// Path below the collection's root.
    pub path: String,
    /// First line, from 1.
    pub start: u32,
    /// Last line, inclusive.
    pub end: u32,
}

/// What stood there when the file was indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLines {
    /// The lines, without the last line break.
    pub text: String,
    /// Hash of the file's content, lowercase hex of SHA-256.
    pub sha256: String,
}

#[derive(sqlx::FromRow)]
struct Piece {
    path: String,
    sha256: String,
    start_line: i32,
    content: String,
}

/// Hash and lines by number, as far as chunks hold them.
#[derive(Default)]
struct File {
    sha256: String,
    lines: BTreeMap<u32, String>,
}

/// What stands at each place; none where the code chunks do not hold all of its lines.
///
/// # Errors
/// When the database cannot be asked.
pub async fn lines(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    places: &[Lines],
) -> Result<Vec<Option<StoredLines>>, Error> {
    let mut files: HashMap<String, File> = HashMap::new();
    for piece in pieces(pool, tenant, collection, places).await? {
        let file = files.entry(piece.path).or_default();
        file.sha256 = piece.sha256;
        let numbers = piece.start_line.unsigned_abs()..;
        file.lines.extend(numbers.zip(piece.content.lines().map(str::to_owned)));
    }
    let stored = |place: &Lines| {
        let file = files.get(&place.path)?;
        let lines: Option<Vec<&str>> =
            (place.start..=place.end).map(|number| file.lines.get(&number).map(String::as_str)).collect();
        let text = lines.filter(|lines| !lines.is_empty())?.join("\n");
        Some(StoredLines { text, sha256: file.sha256.clone() })
    };
    Ok(places.iter().map(stored).collect())
}

async fn pieces(pool: &PgPool, tenant: &str, collection: &str, places: &[Lines]) -> Result<Vec<Piece>, Error> {
    let paths: Vec<&str> = places.iter().map(|place| place.path.as_str()).collect();
    let number = |line: u32| i32::try_from(line).unwrap_or(i32::MAX);
    let starts: Vec<i32> = places.iter().map(|place| number(place.start)).collect();
    let ends: Vec<i32> = places.iter().map(|place| number(place.end)).collect();
    let pieces = sqlx::query_as(
        "select distinct f.path, encode(f.content_sha256, 'hex') as sha256, c.start_line, c.content
           from unnest($3::text[], $4::int[], $5::int[]) as w (path, first_line, last_line)
           join public.rag_scopes as s on s.tenant = $1 and s.collection = $2
           join public.rag_sources as f
             on f.tenant = s.tenant and f.scope_id = s.scope_id and f.path = w.path
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
    .await?;
    Ok(pieces)
}
