//! Building: read the tree, resolve it in memory, write the difference to what is stored, publish in one transaction.

mod difference;
mod read;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use crate::{
    facts::EXTRACTOR_VERSION,
    graph::{Graph, Totals},
    store::difference::Difference,
    walk::{self, Progress, ProgressFn, ReadTree, Skipped, read_tree},
};

/// Builds that write more rows than this refresh the planner's statistics; autovacuum sees to the rest in its time.
const ANALYZE_ABOVE_ROWS: u64 = 2_000;

/// Why a build did not happen; what was stored before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree could not be read.
    #[error("Tree could not be read")]
    Walk(#[from] walk::Error),
    /// The database refused or did not answer.
    #[error("Database failed")]
    Database(#[from] sqlx::Error),
    /// The thread that reads the tree ended early.
    #[error("Reading the tree was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildTarget {
    /// Owner of the repository.
    pub tenant: String,
    /// Name of the repository within the tenant.
    pub repo: String,
    /// Directory of the tree.
    pub root: PathBuf,
    /// Revision of the tree, kept with the build.
    pub revision: Option<String>,
}

/// What a build found and did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildReport {
    /// Number of the build; absent if nothing had changed and nothing was written.
    pub build_id: Option<i64>,
    /// Source files in the graph.
    pub files: usize,
    /// Files that were parsed, the others came from the cache.
    pub files_extracted: usize,
    /// Files that are new or have other content.
    pub files_changed: usize,
    /// Files that are gone.
    pub files_removed: usize,
    /// What was left out.
    pub skipped: Skipped,
    /// Where the references went.
    pub totals: Totals,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Edges of the graph.
    pub edges: usize,
    /// Rows inserted, updated and deleted.
    pub rows_written: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// Brings the stored graph of a repository to the state of a directory.
///
/// Builds of one repository wait for each other; readers see the old graph until the commit.
///
/// # Errors
/// When the directory cannot be read or the database fails; the stored graph is then unchanged.
pub async fn build(pool: &PgPool, request: &BuildTarget, progress: &ProgressFn) -> Result<BuildReport, Error> {
    let started = Instant::now();
    let mut transaction = pool.begin().await?;
    let started_at = lock(&mut transaction, &request.tenant, &request.repo).await?;
    let cache = read::facts(&mut transaction, &request.tenant, &request.repo).await?;
    let known_files = cache.len();
    let (read, graph) = read_and_resolve(&request.root, cache, progress).await?;

    let (tenant, repo) = (request.tenant.as_str(), request.repo.as_str());
    let stored = read::graph(&mut transaction, tenant, repo).await?;
    let difference = Difference::between(&stored, &read, &graph);
    let mut report = BuildReport {
        build_id: None,
        files: read.tree.files.len(),
        files_extracted: read.extracted,
        files_changed: difference.changed_files.len(),
        files_removed: difference.removed_files.len(),
        skipped: read.skipped,
        totals: graph.totals,
        nodes: graph.nodes.len(),
        edges: graph.edges.len(),
        rows_written: 0,
        duration_ms: elapsed_ms(started),
    };
    tracing::debug!(tenant, repo, known_files, files = report.files, "compared the tree with its graph");
    if difference.is_empty() {
        // Nothing to publish: the transaction only held the lock.
        transaction.rollback().await?;
        return Ok(report);
    }
    let total = difference.len();
    progress(Progress { phase: "write", done: 0, total });
    let build_id = write::begin_build(&mut transaction, request, started_at).await?;
    report.rows_written = write::apply(&mut transaction, tenant, repo, build_id, &difference, &read).await?;
    report.build_id = Some(build_id);
    report.duration_ms = elapsed_ms(started);
    write::finish_build(&mut transaction, build_id, &report).await?;
    transaction.commit().await?;
    if report.rows_written > ANALYZE_ABOVE_ROWS {
        refresh_statistics(pool).await;
    }
    progress(Progress { phase: "write", done: total, total });
    Ok(report)
}

/// Removes everything that is stored of a repository; returns the number of files that it had.
///
/// # Errors
/// When the database fails; nothing is removed then.
pub async fn forget(pool: &PgPool, tenant: &str, repo: &str) -> Result<u64, Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, tenant, repo).await?;
    let files = write::delete_all(&mut transaction, tenant, repo).await?;
    transaction.commit().await?;
    Ok(files)
}

async fn read_and_resolve(
    root: &Path,
    cache: walk::FactsCache,
    progress: &ProgressFn,
) -> Result<(ReadTree, Graph), Error> {
    let (root, progress) = (root.to_owned(), Arc::clone(progress));
    tokio::task::spawn_blocking(move || {
        let read = read_tree(&root, cache, &progress)?;
        let total = read.tree.files.len();
        progress(Progress { phase: "resolve", done: 0, total });
        let graph = Graph::of(&read.tree);
        progress(Progress { phase: "resolve", done: total, total });
        Ok((read, graph))
    })
    .await
    .map_err(Error::Interrupted)?
}

/// Best effort, after the commit: a role that does not own the tables gets a warning from Postgres and no more.
async fn refresh_statistics(pool: &PgPool) {
    let statement = "analyze public.kg_files, public.kg_nodes, public.kg_edges, public.kg_unresolved";
    if let Err(error) = sqlx::query(statement).execute(pool).await {
        tracing::debug!(error = format!("{error:#}"), "statistics of the code graph were not refreshed");
    }
}

/// Holds other builds of the repository back until the transaction ends.
async fn lock(connection: &mut PgConnection, tenant: &str, repo: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('cogo kg build ' || $1 || ' ' || $2, 0))")
        .bind(tenant)
        .bind(repo)
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whether cached facts may be used again.
fn is_current(extractor: i16) -> bool {
    extractor == EXTRACTOR_VERSION
}
