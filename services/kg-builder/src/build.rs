//! The handler of kg/build.

use std::sync::Arc;

use cogo_contracts::{BuildReply, BuildRequest, Route, routes};
use cogo_kg_core::{BuildError, BuildTarget, ProgressFn, build};
use cogo_service_runtime::{AllowedRoots, Claim, Handler, HandlerError};
use sqlx::PgPool;

/// Brings the graph of a tree up to date.
pub struct Build {
    /// Where the graph stands.
    pub pool: PgPool,
    /// Directories below which trees may be read.
    pub allowed_roots: AllowedRoots,
}

impl Handler for Build {
    const ROUTE: Route = routes::BUILD;
    type Request = BuildRequest;
    type Reply = BuildReply;

    async fn handle(&self, request: BuildRequest, claim: &Claim) -> Result<BuildReply, HandlerError> {
        let root = self.allowed_roots.resolve(&request.root).map_err(HandlerError::reject)?;
        let target = BuildTarget { tenant: claim.tenant().to_owned(), repo: request.repo, root, revision: None };
        let silent: ProgressFn = Arc::new(|_| {});
        let report = build(&self.pool, &target, &silent).await.map_err(failure)?;
        let reply = BuildReply {
            files: report.files as u64,
            changed: report.files_changed as u64,
            nodes: report.nodes as u64,
            edges: report.edges as u64,
            unresolved: report.totals.unresolved as u64,
        };
        claim.summarize(format!("{} files, {} edges, {} unresolved", reply.files, reply.edges, reply.unresolved));
        Ok(reply)
    }
}

fn failure(error: BuildError) -> HandlerError {
    match error {
        BuildError::Walk(_) => HandlerError::reject(error),
        other => HandlerError::retry(other),
    }
}
