//! What is stored of a repository, in the shape that a fresh graph has.

use std::collections::{BTreeMap, HashMap};

use sqlx::{PgConnection, types::Json};

use crate::{
    facts::FileFacts,
    graph::{Edge, EdgeKey, Graph, Node, Unresolved, UnresolvedKey},
    store::is_current,
    walk::FactsCache,
};

/// The stored graph with the digests of its files.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Digest, and whether the facts beside it are of today's extraction, by path.
    pub(super) files: BTreeMap<String, (Vec<u8>, bool)>,
    pub(super) graph: Graph,
}

#[derive(sqlx::FromRow)]
struct EdgeRow {
    src_id: i64,
    dst_id: i64,
    src_unit_id: i64,
    dst_unit_id: i64,
    kind: String,
    line: i32,
    start_line: i32,
    end_line: i32,
    count: i32,
    text: String,
    resolution: String,
    confidence: f32,
}

#[derive(sqlx::FromRow)]
struct UnresolvedRow {
    file_id: i64,
    line: i32,
    kind: String,
    text: String,
    reason: String,
    start_line: i32,
    end_line: i32,
    count: i32,
    names: Vec<String>,
}

pub(super) async fn facts(connection: &mut PgConnection, tenant: &str, repo: &str) -> Result<FactsCache, sqlx::Error> {
    let rows: Vec<(String, Vec<u8>, i16, Json<serde_json::Value>)> = sqlx::query_as(
        "select path, content_sha256, extractor, facts
           from public.kg_files
          where tenant = $1 and repo = $2",
    )
    .bind(tenant)
    .bind(repo)
    .fetch_all(connection)
    .await?;
    let mut cache = HashMap::with_capacity(rows.len());
    for (path, sha256, extractor, facts) in rows {
        // Facts in an older shape are no error: the file is read anew.
        if is_current(extractor)
            && let Ok(facts) = serde_json::from_value::<FileFacts>(facts.0)
        {
            cache.insert(path, (sha256, facts));
        }
    }
    Ok(cache)
}

pub(super) async fn graph(connection: &mut PgConnection, tenant: &str, repo: &str) -> Result<Stored, sqlx::Error> {
    let mut stored = Stored::default();
    let files: Vec<(String, Vec<u8>, i16)> = sqlx::query_as(
        "select path, content_sha256, extractor
           from public.kg_files
          where tenant = $1 and repo = $2",
    )
    .bind(tenant)
    .bind(repo)
    .fetch_all(&mut *connection)
    .await?;
    for (path, sha256, extractor) in files {
        stored.files.insert(path, (sha256, is_current(extractor)));
    }
    let nodes: Vec<Node> = sqlx::query_as(
        "select id, kind, name, qualified_name, language, path, start_line, end_line, file_id, unit_id
           from public.kg_nodes
          where tenant = $1 and repo = $2",
    )
    .bind(tenant)
    .bind(repo)
    .fetch_all(&mut *connection)
    .await?;
    stored.graph.nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
    stored.graph.edges = edges(&mut *connection, tenant, repo).await?;
    stored.graph.unresolved = unresolved(connection, tenant, repo).await?;
    Ok(stored)
}

async fn edges(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
) -> Result<BTreeMap<EdgeKey, Edge>, sqlx::Error> {
    let rows: Vec<EdgeRow> = sqlx::query_as(
        "select src_id, dst_id, src_unit_id, dst_unit_id, kind, line, start_line, end_line, count,
                text, resolution, confidence
           from public.kg_edges
          where tenant = $1 and repo = $2",
    )
    .bind(tenant)
    .bind(repo)
    .fetch_all(connection)
    .await?;
    let entry = |row: EdgeRow| {
        let key = EdgeKey { src_id: row.src_id, line: row.line, kind: row.kind, dst_id: row.dst_id };
        let edge = Edge {
            src_unit_id: row.src_unit_id,
            dst_unit_id: row.dst_unit_id,
            start_line: row.start_line,
            end_line: row.end_line,
            count: row.count,
            text: row.text,
            resolution: row.resolution,
            confidence: row.confidence,
        };
        (key, edge)
    };
    Ok(rows.into_iter().map(entry).collect())
}

async fn unresolved(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
) -> Result<BTreeMap<UnresolvedKey, Unresolved>, sqlx::Error> {
    let rows: Vec<UnresolvedRow> = sqlx::query_as(
        "select file_id, line, kind, text, reason, start_line, end_line, count, names
           from public.kg_unresolved
          where tenant = $1 and repo = $2",
    )
    .bind(tenant)
    .bind(repo)
    .fetch_all(connection)
    .await?;
    let entry = |row: UnresolvedRow| {
        let key =
            UnresolvedKey { file_id: row.file_id, line: row.line, kind: row.kind, text: row.text, reason: row.reason };
        let unresolved =
            Unresolved { start_line: row.start_line, end_line: row.end_line, count: row.count, names: row.names };
        (key, unresolved)
    };
    Ok(rows.into_iter().map(entry).collect())
}
