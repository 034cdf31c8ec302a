//! Brings a whole collection up to date in one call, for the command line and for tests.

use std::path::Path;

use serde::Serialize;
use sqlx::PgPool;

use super::{Error, MAX_BATCH_FILES, index::FileError, index_files, plan, remove_files};
use crate::walk::{WalkLimits, walk};

/// How far a sync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files done.
    pub done: usize,
    /// Files that have to be done; unchanged ones are not among them.
    pub total: usize,
}

/// What a sync did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Files whose chunks were written.
    pub indexed: usize,
    /// Files that needed nothing.
    pub unchanged: usize,
    /// Files taken out of the index.
    pub removed: usize,
    /// Files left out on purpose.
    pub skipped: usize,
    /// Chunks written.
    pub chunks: usize,
    /// Files or directories that could not be read.
    pub failed: usize,
    /// The first few of the failures.
    pub errors: Vec<String>,
}

/// Walks `root`, indexes what changed and removes what is gone, reporting after each batch.
///
/// Safe to run twice at once: batches of one collection follow each other, and content that is already there is left.
///
/// # Errors
/// When the root cannot be opened or the database refuses.
pub async fn sync(
    pool: &PgPool,
    tenant: &str,
    collection: &str,
    root: &Path,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<SyncReport, Error> {
    let limits = WalkLimits::default();
    let walk_root = root.to_path_buf();
    let walked = tokio::task::spawn_blocking(move || walk(&walk_root, limits)).await??;
    let plan = plan(pool, tenant, collection, &walked.files).await?;
    let mut report = SyncReport {
        unchanged: plan.unchanged,
        skipped: walked.skipped,
        failed: walked.failed,
        errors: walked.errors,
        ..SyncReport::default()
    };
    let total = plan.changed.len() + plan.removed.len();
    let mut done = 0;
    for batch in plan.changed.chunks(MAX_BATCH_FILES) {
        let indexed = index_files(pool, tenant, collection, root, batch, limits).await?;
        report.indexed += indexed.indexed;
        report.unchanged += indexed.unchanged;
        report.removed += indexed.removed;
        report.skipped += indexed.skipped;
        report.chunks += indexed.chunks;
        report.failed += indexed.errors.len();
        report.errors.extend(indexed.errors.into_iter().map(|FileError { path, reason }| format!("{path}: {reason}")));
        done += batch.len();
        progress(Progress { done, total });
    }
    for batch in plan.removed.chunks(MAX_BATCH_FILES) {
        report.removed += remove_files(pool, tenant, collection, batch).await?;
        done += batch.len();
        progress(Progress { done, total });
    }
    Ok(report)
}
