//! Indexes and removes files, one transaction for each batch.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use super::{
    Error,
    chunks::{self, Totals},
    postings::{self, Frequencies},
    prepare::{PreparedFile, prepare},
    scope,
};
use crate::{
    tokens::Tokenizer,
    walk::{FileText, Reading, WalkLimits, read_file, resolve_root},
};

/// What became of the files of a batch.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexReport {
    /// Files whose chunks were written.
    pub indexed: usize,
    /// Files whose content was already indexed; nothing was written for them.
    pub unchanged: usize,
    /// Files taken out of the index, because they are gone or no longer worth indexing.
    pub removed: usize,
    /// Files left out on purpose: binary, too large, minified, lock file.
    pub skipped: usize,
    /// Chunks written.
    pub chunks: usize,
    /// Files that could not be read; what the index holds of them stays.
    pub errors: Vec<FileError>,
}

/// A file that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileError {
    /// Path below the root.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Brings the index up to date for these paths below `root`, in one transaction.
///
/// Cuts and counts the files before it takes the collection's lock, since that is most of the work, and reads them again
/// under it: of two deliveries the later one never stores older content.
///
/// # Errors
/// When the root cannot be opened or the database refuses; single files are reported instead.
pub async fn index_files(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    root: &Path,
    paths: &[String],
    limits: WalkLimits,
) -> Result<IndexReport, Error> {
    let root = resolve_root(root, &[])?;
    let ready = prepare_ahead(pool, tenant, collection, &root, paths, limits).await?;
    let wanted: BTreeSet<String> = paths.iter().cloned().collect();
    let mut transaction = pool.begin().await?;
    scope::lock(&mut transaction, tenant, collection).await?;
    let read = tokio::task::spawn_blocking(move || read_all(&root, wanted, limits)).await?;
    let scope_id = scope::ensure(&mut transaction, tenant, collection).await?;
    let stored = stored_sources(&mut transaction, tenant, scope_id, paths).await?;

    let mut report = IndexReport { skipped: read.skipped, errors: read.errors, ..IndexReport::default() };
    let (unchanged, changed) = split(read.files, &stored);
    report.unchanged = unchanged;
    let source_of = |path: &String| stored.get(path).map(|(source_id, _)| *source_id);
    let gone: Vec<i64> = read.gone.iter().filter_map(source_of).collect();
    report.removed = gone.len();
    if changed.is_empty() && gone.is_empty() {
        // A first delivery of nothing but skipped files still makes the collection known.
        transaction.commit().await?;
        return Ok(report);
    }
    let replaced: Vec<i64> = changed.iter().filter_map(|file| source_of(&file.entry.path)).collect();
    let prepared = prepare_rest(ready, changed).await?;
    report.indexed = prepared.len();
    report.chunks = prepared.iter().map(|file| file.chunks.len()).sum();
    replace(&mut transaction, Scope { tenant, scope_id }, &replaced, &gone, &prepared).await?;
    transaction.commit().await?;
    Ok(report)
}

/// What differs from the index, read and cut without any lock; it may be outdated when the lock is held.
async fn prepare_ahead(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    root: &Path,
    paths: &[String],
    limits: WalkLimits,
) -> Result<Vec<PreparedFile>, Error> {
    let mut connection = pool.acquire().await?;
    let stored = match scope::find(&mut connection, tenant, collection).await? {
        Some(scope_id) => stored_sources(&mut connection, tenant, scope_id, paths).await?,
        None => HashMap::new(),
    };
    drop(connection);
    let (root, wanted) = (root.to_path_buf(), paths.iter().cloned().collect());
    let prepared = tokio::task::spawn_blocking(move || {
        let (_, changed) = split(read_all(&root, wanted, limits).files, &stored);
        prepare_all(changed)
    });
    Ok(prepared.await?)
}

/// The changed files ready to be stored: those that were prepared with this very content, and the rest prepared now.
async fn prepare_rest(ready: Vec<PreparedFile>, changed: Vec<FileText>) -> Result<Vec<PreparedFile>, Error> {
    let mut ready: HashMap<String, PreparedFile> =
        ready.into_iter().map(|file| (file.entry.path.clone(), file)).collect();
    let (mut prepared, mut rest) = (Vec::with_capacity(changed.len()), Vec::new());
    for file in changed {
        match ready.remove(&file.entry.path).filter(|ready| ready.entry == file.entry) {
            Some(same) => prepared.push(same),
            None => rest.push(file),
        }
    }
    if !rest.is_empty() {
        prepared.extend(tokio::task::spawn_blocking(move || prepare_all(rest)).await?);
    }
    Ok(prepared)
}

/// Takes these paths out of the index; answers how many were in it.
///
/// # Errors
/// When the database refuses.
pub async fn remove_files(pool: &PgPool, tenant: &str, collection: &str, paths: &[String]) -> Result<usize, Error> {
    let mut transaction = pool.begin().await?;
    scope::lock(&mut transaction, tenant, collection).await?;
    let Some(scope_id) = scope::find(&mut transaction, tenant, collection).await? else { return Ok(0) };
    let stored = stored_sources(&mut transaction, tenant, scope_id, paths).await?;
    let gone: Vec<i64> = stored.values().map(|(source_id, _)| *source_id).collect();
    if !gone.is_empty() {
        replace(&mut transaction, Scope { tenant, scope_id }, &[], &gone, &[]).await?;
    }
    transaction.commit().await?;
    Ok(gone.len())
}

#[derive(Clone, Copy)]
struct Scope<'call> {
    tenant: &'call str,
    scope_id: i64,
}

/// Takes out what the files had and puts in what they have now.
async fn replace(
    connection: &mut PgConnection,
    Scope { tenant, scope_id }: Scope<'_>,
    replaced: &[i64],
    gone: &[i64],
    files: &[PreparedFile],
) -> Result<(), sqlx::Error> {
    let mut frequencies = Frequencies::new();
    let outdated = [replaced, gone].concat();
    let mut lost = Totals::default();
    if !outdated.is_empty() {
        postings::delete(connection, tenant, &outdated, &mut frequencies).await?;
        lost = chunks::delete(connection, tenant, &outdated).await?;
    }
    if !gone.is_empty() {
        sqlx::query("delete from public.rag_sources where tenant = $1 and source_id = any($2)")
            .bind(tenant)
            .bind(gone)
            .execute(&mut *connection)
            .await?;
    }
    let mut gained = Totals::default();
    if !files.is_empty() {
        let sources = chunks::upsert_sources(connection, tenant, scope_id, files).await?;
        let stored = chunks::insert(connection, tenant, scope_id, files, &sources).await?;
        postings::insert(connection, tenant, scope_id, &stored, &mut frequencies).await?;
        gained.chunks = stored.len() as i64;
        gained.tokens = stored.iter().map(|chunk| i64::from(chunk.prepared.token_count)).sum();
    }
    postings::apply(connection, tenant, &frequencies).await?;
    scope::change(connection, tenant, scope_id, gained.chunks - lost.chunks, gained.tokens - lost.tokens).await
}

/// Key and content hash of each indexed file by its path.
type Stored = HashMap<String, (i64, Vec<u8>)>;

/// Counts the files that are indexed as they are, and gives the others back.
fn split(files: Vec<FileText>, stored: &Stored) -> (usize, Vec<FileText>) {
    let total = files.len();
    let is_changed =
        |file: &FileText| stored.get(&file.entry.path).is_none_or(|(_, sha256)| *sha256 != file.entry.sha256);
    let changed: Vec<FileText> = files.into_iter().filter(is_changed).collect();
    (total - changed.len(), changed)
}

async fn stored_sources(
    connection: &mut PgConnection,
    tenant: &str,
    scope_id: i64,
    paths: &[String],
) -> Result<Stored, sqlx::Error> {
    // A path of a message may hold a NUL, which the database would refuse for the whole batch.
    let storable: Vec<&str> = paths.iter().map(String::as_str).filter(|path| !path.contains('\0')).collect();
    let rows: Vec<(String, i64, Vec<u8>)> = sqlx::query_as(
        "select path, source_id, content_sha256
           from public.rag_sources
          where tenant = $1 and scope_id = $2 and path = any($3)",
    )
    .bind(tenant)
    .bind(scope_id)
    .bind(storable)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(path, source_id, sha256)| (path, (source_id, sha256))).collect())
}

#[derive(Default)]
struct ReadBatch {
    files: Vec<FileText>,
    /// Paths that must not be in the index: missing or left out.
    gone: Vec<String>,
    skipped: usize,
    errors: Vec<FileError>,
}

fn read_all(root: &Path, paths: BTreeSet<String>, limits: WalkLimits) -> ReadBatch {
    let mut batch = ReadBatch::default();
    for path in paths {
        match read_file(root, &path, limits) {
            Ok(Reading::Text(file)) => batch.files.push(file),
            Ok(Reading::Skipped(_)) => {
                batch.skipped += 1;
                batch.gone.push(path);
            }
            Ok(Reading::Missing) => batch.gone.push(path),
            Err(error) => batch.errors.push(FileError { reason: error.to_string(), path }),
        }
    }
    batch
}

fn prepare_all(files: Vec<FileText>) -> Vec<PreparedFile> {
    let tokenizer = Tokenizer::default();
    files.into_iter().map(|file| prepare(&tokenizer, file)).collect()
}
