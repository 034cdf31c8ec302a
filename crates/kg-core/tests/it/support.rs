//! What the tests share: building a tree, and the graph as readable lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cogo_kg_core::{BuildReport, BuildTarget, CodeGraph, Found, GraphNode, ProgressFn, build};
use sqlx::PgPool;

pub(crate) const TENANT: &str = "acme";
pub(crate) const REPO: &str = "sample";

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn silent() -> ProgressFn {
    Arc::new(|_| {})
}

pub(crate) async fn build_repo(pool: &PgPool, repo: &str, root: &Path) -> BuildReport {
    let target =
        BuildTarget { tenant: TENANT.to_owned(), repo: repo.to_owned(), root: root.to_owned(), revision: None };
    build(pool, &target, &silent()).await.expect("tree builds")
}

pub(crate) async fn built(pool: &PgPool, fixture_name: &str) -> (CodeGraph, BuildReport) {
    let report = build_repo(pool, REPO, &fixture(fixture_name)).await;
    (CodeGraph::new(pool.clone(), TENANT, REPO), report)
}

/// Every edge as `path:line kind target resolution`, and every unresolved reference as `path:line kind ? text reason`.
pub(crate) async fn graph_lines(pool: &PgPool, repo: &str) -> Vec<String> {
    let mut lines: Vec<String> = sqlx::query_scalar(
        "select f.path || ':' || e.line || ' ' || e.kind || ' '
                || case when n.kind = 'external' then n.qualified_name
                        when n.kind in ('file', 'package', 'asset') then n.kind || ' ' || n.path
                        else n.path || '#' || n.name end
                || ' ' || e.resolution
                || case when e.count > 1 then ' x' || e.count else '' end
           from public.kg_edges as e
           join public.kg_files as f on f.tenant = e.tenant and f.repo = e.repo and f.id = e.src_id
           join public.kg_nodes as n on n.tenant = e.tenant and n.repo = e.repo and n.id = e.dst_id
          where e.tenant = $1 and e.repo = $2",
    )
    .bind(TENANT)
    .bind(repo)
    .fetch_all(pool)
    .await
    .expect("edges are read");
    let unresolved: Vec<String> = sqlx::query_scalar(
        "select f.path || ':' || u.line || ' ' || u.kind || ' ? ' || u.text || ' ' || u.reason
           from public.kg_unresolved as u
           join public.kg_files as f on f.tenant = u.tenant and f.repo = u.repo and f.id = u.file_id
          where u.tenant = $1 and u.repo = $2",
    )
    .bind(TENANT)
    .bind(repo)
    .fetch_all(pool)
    .await
    .expect("unresolved references are read");
    lines.extend(unresolved);
    lines.sort();
    lines
}

/// All that is stored of a repository but the build numbers.
pub(crate) async fn everything(pool: &PgPool, repo: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for statement in [
        "select (to_jsonb(t) - 'repo' - 'build_id')::text from public.kg_files as t where tenant = $1 and repo = $2",
        "select (to_jsonb(t) - 'repo')::text from public.kg_nodes as t where tenant = $1 and repo = $2",
        "select (to_jsonb(t) - 'repo')::text from public.kg_edges as t where tenant = $1 and repo = $2",
        "select (to_jsonb(t) - 'repo')::text from public.kg_unresolved as t where tenant = $1 and repo = $2",
    ] {
        let found: Vec<String> =
            sqlx::query_scalar(statement).bind(TENANT).bind(repo).fetch_all(pool).await.expect("rows are read");
        rows.extend(found);
    }
    rows.sort();
    rows
}

pub(crate) async fn one(graph: &CodeGraph, text: &str) -> GraphNode {
    match graph.find_target(text).await.expect("target is looked up") {
        Found::One(node) => *node,
        other => panic!("{text} is not one node: {other:#?}"),
    }
}
