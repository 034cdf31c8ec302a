//! Statements that write the difference between two graphs, in batches.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, types::Json};

use crate::{
    facts::EXTRACTOR_VERSION,
    graph::{Edge, EdgeKey, Node, Unresolved, UnresolvedKey, file_id},
    language::is_test_path,
    store::{BuildReport, BuildTarget, difference::Difference},
    walk::ReadTree,
};

/// Rows per statement, so that parameters stay at a few megabytes.
const BATCH: usize = 2_000;

pub(super) async fn begin_build(
    connection: &mut PgConnection,
    request: &BuildTarget,
    started_at: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "insert into public.kg_builds (tenant, repo, revision, stats, started_at)
         values ($1, $2, $3, '{}', $4)
         returning id",
    )
    .bind(&request.tenant)
    .bind(&request.repo)
    .bind(&request.revision)
    .bind(started_at)
    .fetch_one(connection)
    .await
}

pub(super) async fn finish_build(
    connection: &mut PgConnection,
    build_id: i64,
    report: &BuildReport,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update public.kg_builds
            set stats = $2, finished_at = clock_timestamp()
          where id = $1",
    )
    .bind(build_id)
    .bind(Json(report))
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    build_id: i64,
    difference: &Difference,
    read: &ReadTree,
) -> Result<u64, sqlx::Error> {
    let mut rows = 0;
    for batch in difference.gone_edges.chunks(BATCH) {
        rows += delete_edges(connection, tenant, repo, batch).await?;
    }
    for batch in difference.gone_unresolved.chunks(BATCH) {
        rows += delete_unresolved(connection, tenant, repo, batch).await?;
    }
    // New nodes and files may be the targets of new edges, old ones must have lost theirs: this order fits both.
    for batch in difference.changed_files.chunks(BATCH / 10) {
        rows += upsert_files(connection, tenant, repo, build_id, batch, read).await?;
    }
    for batch in difference.nodes.chunks(BATCH) {
        rows += upsert_nodes(connection, tenant, repo, batch).await?;
    }
    for batch in difference.edges.chunks(BATCH) {
        rows += upsert_edges(connection, tenant, repo, batch).await?;
    }
    for batch in difference.unresolved.chunks(BATCH) {
        rows += upsert_unresolved(connection, tenant, repo, batch).await?;
    }
    rows += delete_nodes(connection, tenant, repo, &difference.gone_nodes).await?;
    rows += delete_files(connection, tenant, repo, &difference.removed_files).await?;
    Ok(rows)
}

async fn upsert_files(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    build_id: i64,
    paths: &[String],
    read: &ReadTree,
) -> Result<u64, sqlx::Error> {
    let files: Vec<_> =
        paths.iter().filter_map(|path| Some((path, read.tree.files.get(path)?, read.stamps.get(path)?))).collect();
    let line_count = |lines: u32| i32::try_from(lines).unwrap_or(i32::MAX);
    let result = sqlx::query(
        "insert into public.kg_files
                (tenant, repo, build_id, extractor, id, path, language, content_sha256, bytes, lines,
                 parse_errors, is_test, facts)
         select $1, $2, $3, $4, f.id, f.path, f.language, f.content_sha256, f.bytes, f.lines,
                f.parse_errors, f.is_test, f.facts
           from unnest($5::bigint[], $6::text[], $7::text[], $8::bytea[], $9::bigint[], $10::int[],
                       $11::bool[], $12::bool[], $13::jsonb[])
             as f (id, path, language, content_sha256, bytes, lines, parse_errors, is_test, facts)
             on conflict (tenant, repo, id) do update
            set build_id = excluded.build_id, extractor = excluded.extractor,
                language = excluded.language, content_sha256 = excluded.content_sha256,
                bytes = excluded.bytes, lines = excluded.lines, parse_errors = excluded.parse_errors,
                is_test = excluded.is_test, facts = excluded.facts",
    )
    .bind(tenant)
    .bind(repo)
    .bind(build_id)
    .bind(EXTRACTOR_VERSION)
    .bind(files.iter().map(|(path, _, _)| file_id(path)).collect::<Vec<_>>())
    .bind(paths_of(&files))
    .bind(files.iter().map(|(_, file, _)| file.language.as_str()).collect::<Vec<_>>())
    .bind(files.iter().map(|(_, _, stamp)| stamp.sha256.as_slice()).collect::<Vec<_>>())
    .bind(files.iter().map(|(_, _, stamp)| stamp.bytes).collect::<Vec<_>>())
    .bind(files.iter().map(|(_, file, _)| line_count(file.facts.lines)).collect::<Vec<_>>())
    .bind(files.iter().map(|(_, file, _)| file.facts.parse_errors).collect::<Vec<_>>())
    .bind(files.iter().map(|(path, _, _)| is_test_path(path)).collect::<Vec<_>>())
    .bind(files.iter().map(|(_, file, _)| Json(&file.facts)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

fn paths_of<A, B>(files: &[(&String, A, B)]) -> Vec<String> {
    files.iter().map(|(path, _, _)| (*path).clone()).collect()
}

async fn upsert_nodes(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    nodes: &[Node],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "insert into public.kg_nodes
                (tenant, repo, id, kind, name, qualified_name, language, path, start_line, end_line,
                 file_id, unit_id)
         select $1, $2, n.id, n.kind, n.name, n.qualified_name, n.language, n.path, n.start_line,
                n.end_line, n.file_id, n.unit_id
           from unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::int[], $10::int[], $11::bigint[], $12::bigint[])
             as n (id, kind, name, qualified_name, language, path, start_line, end_line, file_id, unit_id)
             on conflict (tenant, repo, id) do update
            set kind = excluded.kind, name = excluded.name, qualified_name = excluded.qualified_name,
                language = excluded.language, path = excluded.path, start_line = excluded.start_line,
                end_line = excluded.end_line, file_id = excluded.file_id, unit_id = excluded.unit_id",
    )
    .bind(tenant)
    .bind(repo)
    .bind(nodes.iter().map(|node| node.id).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.kind.clone()).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.qualified_name.clone()).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.language.clone()).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.path.clone()).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.start_line).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.end_line).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.file_id).collect::<Vec<_>>())
    .bind(nodes.iter().map(|node| node.unit_id).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

async fn upsert_edges(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    edges: &[(EdgeKey, Edge)],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "insert into public.kg_edges
                (tenant, repo, src_id, dst_id, src_unit_id, dst_unit_id, kind, line, start_line,
                 end_line, count, text, resolution, confidence)
         select $1, $2, e.src_id, e.dst_id, e.src_unit_id, e.dst_unit_id, e.kind, e.line,
                e.start_line, e.end_line, e.count, e.text, e.resolution, e.confidence
           from unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::int[],
                       $9::int[], $10::int[], $11::int[], $12::text[], $13::text[], $14::real[])
             as e (src_id, dst_id, src_unit_id, dst_unit_id, kind, line, start_line, end_line, count,
                   text, resolution, confidence)
             on conflict (tenant, repo, src_id, line, kind, dst_id) do update
            set src_unit_id = excluded.src_unit_id, dst_unit_id = excluded.dst_unit_id,
                start_line = excluded.start_line, end_line = excluded.end_line,
                count = excluded.count, text = excluded.text, resolution = excluded.resolution,
                confidence = excluded.confidence",
    )
    .bind(tenant)
    .bind(repo)
    .bind(edges.iter().map(|(key, _)| key.src_id).collect::<Vec<_>>())
    .bind(edges.iter().map(|(key, _)| key.dst_id).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.src_unit_id).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.dst_unit_id).collect::<Vec<_>>())
    .bind(edges.iter().map(|(key, _)| key.kind.clone()).collect::<Vec<_>>())
    .bind(edges.iter().map(|(key, _)| key.line).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.start_line).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.end_line).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.count).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.text.clone()).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.resolution.clone()).collect::<Vec<_>>())
    .bind(edges.iter().map(|(_, edge)| edge.confidence).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

async fn upsert_unresolved(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    rows: &[(UnresolvedKey, Unresolved)],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "insert into public.kg_unresolved
                (tenant, repo, file_id, line, kind, text, reason, start_line, end_line, count, names)
         select $1, $2, u.file_id, u.line, u.kind, u.text, u.reason, u.start_line, u.end_line,
                u.count, array(select jsonb_array_elements_text(u.names))
           from unnest($3::bigint[], $4::int[], $5::text[], $6::text[], $7::text[], $8::int[],
                       $9::int[], $10::int[], $11::jsonb[])
             as u (file_id, line, kind, text, reason, start_line, end_line, count, names)
             on conflict (tenant, repo, file_id, line, kind, text, reason) do update
            set start_line = excluded.start_line, end_line = excluded.end_line,
                count = excluded.count, names = excluded.names",
    )
    .bind(tenant)
    .bind(repo)
    .bind(rows.iter().map(|(key, _)| key.file_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(key, _)| key.line).collect::<Vec<_>>())
    .bind(rows.iter().map(|(key, _)| key.kind.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(key, _)| key.text.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(key, _)| key.reason.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, row)| row.start_line).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, row)| row.end_line).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, row)| row.count).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, row)| Json(&row.names)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

async fn delete_edges(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    keys: &[EdgeKey],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "delete from public.kg_edges as e
          using unnest($3::bigint[], $4::int[], $5::text[], $6::bigint[]) as g (src_id, line, kind, dst_id)
          where e.tenant = $1 and e.repo = $2 and e.src_id = g.src_id and e.line = g.line
            and e.kind = g.kind and e.dst_id = g.dst_id",
    )
    .bind(tenant)
    .bind(repo)
    .bind(keys.iter().map(|key| key.src_id).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.line).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.kind.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.dst_id).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

async fn delete_unresolved(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    keys: &[UnresolvedKey],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "delete from public.kg_unresolved as u
          using unnest($3::bigint[], $4::int[], $5::text[], $6::text[], $7::text[])
             as g (file_id, line, kind, text, reason)
          where u.tenant = $1 and u.repo = $2 and u.file_id = g.file_id and u.line = g.line
            and u.kind = g.kind and u.text = g.text and u.reason = g.reason",
    )
    .bind(tenant)
    .bind(repo)
    .bind(keys.iter().map(|key| key.file_id).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.line).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.kind.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.text.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.reason.clone()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

async fn delete_nodes(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    ids: &[i64],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query("delete from public.kg_nodes where tenant = $1 and repo = $2 and id = any($3)")
        .bind(tenant)
        .bind(repo)
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(result.rows_affected())
}

async fn delete_files(
    connection: &mut PgConnection,
    tenant: &str,
    repo: &str,
    paths: &[String],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query("delete from public.kg_files where tenant = $1 and repo = $2 and path = any($3)")
        .bind(tenant)
        .bind(repo)
        .bind(paths)
        .execute(connection)
        .await?;
    Ok(result.rows_affected())
}

pub(super) async fn delete_all(connection: &mut PgConnection, tenant: &str, repo: &str) -> Result<u64, sqlx::Error> {
    let statements = [
        "delete from public.kg_edges where tenant = $1 and repo = $2",
        "delete from public.kg_unresolved where tenant = $1 and repo = $2",
        "delete from public.kg_nodes where tenant = $1 and repo = $2",
        "delete from public.kg_files where tenant = $1 and repo = $2",
        "delete from public.kg_builds where tenant = $1 and repo = $2",
    ];
    let mut files = 0;
    for statement in statements {
        let result = sqlx::query(statement).bind(tenant).bind(repo).execute(&mut *connection).await?;
        if statement.contains("kg_files") {
            files = result.rows_affected();
        }
    }
    Ok(files)
}
