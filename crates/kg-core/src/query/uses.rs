//! Direct neighbours: who takes something from a node, and what a file takes from elsewhere.

use serde::Serialize;

use crate::query::{CodeGraph, GraphNode};

/// Rows of mentions that an answer lists; the count is complete.
const MENTION_LIMIT: i64 = 20;

/// A place that takes something from the node in question.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Use {
    /// File of the reference.
    pub path: String,
    /// Line of the name itself.
    pub line: i32,
    /// First line of the statement.
    pub start_line: i32,
    /// Last line of the statement.
    pub end_line: i32,
    /// The reference in one line.
    pub text: String,
    /// `imports`, `reexports`, `references`, or `via` for a use that passes through the node.
    pub kind: String,
    /// How the target was found.
    pub resolution: String,
    /// How sure that is, 0 to 1.
    pub confidence: f32,
    /// Whether the named thing is taken (`symbol`), or the whole module that holds it (`module`).
    pub precision: String,
    /// What is taken.
    pub target: String,
    /// Whether the using file is a test.
    pub is_test: bool,
    /// Ids for walks.
    #[serde(skip)]
    pub(crate) src_id: i64,
    /// Ids for walks.
    #[serde(skip)]
    pub(crate) src_unit_id: i64,
}

/// Something that a file takes from elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Import {
    /// Line of the name itself.
    pub line: i32,
    /// First line of the statement.
    pub start_line: i32,
    /// Last line of the statement.
    pub end_line: i32,
    /// The reference in one line.
    pub text: String,
    /// `imports`, `reexports`, `references` or `declares`.
    pub kind: String,
    /// How the target was found.
    pub resolution: String,
    /// How sure that is, 0 to 1.
    pub confidence: f32,
    /// Full name of the target.
    pub target: String,
    /// Kind of the target.
    pub target_kind: String,
    /// File or directory of the target, absent for external packages.
    pub target_path: Option<String>,
    /// First line of the target.
    pub target_start_line: i32,
    /// Last line of the target.
    pub target_end_line: i32,
}

/// A reference that leads nowhere known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct UnresolvedUse {
    /// File of the reference.
    pub path: String,
    /// First line of the statement.
    pub start_line: i32,
    /// Last line of the statement.
    pub end_line: i32,
    /// The reference in one line.
    pub text: String,
    /// Why it leads nowhere.
    pub reason: String,
}

/// All that a file takes from elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Imports {
    /// References with a target, by line.
    pub resolved: Vec<Import>,
    /// References without one, by line.
    pub unresolved: Vec<UnresolvedUse>,
}

impl CodeGraph {
    /// Every direct use of a file, package, definition or external package, by path and line.
    ///
    /// For a definition the uses of its members count, and so do imports of the whole module, marked as such.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn importers(&self, node: &GraphNode) -> Result<Vec<Use>, sqlx::Error> {
        if node.is_definition() { self.uses_of_definition(node).await } else { self.uses_of_whole(node).await }
    }

    async fn uses_of_whole(&self, node: &GraphNode) -> Result<Vec<Use>, sqlx::Error> {
        sqlx::query_as(
            "select f.path, e.line, e.start_line, e.end_line, e.text, e.kind, e.resolution, e.confidence,
                    case when d.id = $4 or d.kind = 'package' then 'module' else 'symbol' end as precision,
                    d.qualified_name as target, f.is_test, e.src_id, e.src_unit_id
               from public.kg_edges as e
               join public.kg_nodes as d on d.tenant = e.tenant and d.repo = e.repo and d.id = e.dst_id
               join public.kg_files as f on f.tenant = e.tenant and f.repo = e.repo and f.id = e.src_id
              where e.tenant = $1 and e.repo = $2 and e.dst_unit_id = $3
                and e.src_id <> $4 and e.kind <> 'declares'
                -- in Go a unit is a package: definitions of its other files are not this file's
                and ($5 <> 'file' or d.file_id is null or d.file_id = $4)
              order by f.path, e.line, e.kind",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(node.unit_id)
        .bind(node.id)
        .bind(&node.kind)
        .fetch_all(&self.pool)
        .await
    }

    async fn uses_of_definition(&self, node: &GraphNode) -> Result<Vec<Use>, sqlx::Error> {
        sqlx::query_as(
            "with wanted as (
               select n.id, 'symbol' as precision
                 from public.kg_nodes as n
                where n.tenant = $1 and n.repo = $2
                  and (n.file_id = $4 or n.file_id in (select o.id from public.kg_nodes as o
                                                        where o.tenant = $1 and o.repo = $2
                                                          and o.unit_id = $3 and o.kind = 'file'))
                  and (n.qualified_name = $5 or starts_with(n.qualified_name, $5 || '.')
                       or starts_with(n.qualified_name, $5 || '::'))
                  and n.kind <> 'file'
               union all
               select n.id, 'module'
                 from public.kg_nodes as n
                where n.tenant = $1 and n.repo = $2 and n.id in ($3, $4)
             )
             select f.path, e.line, e.start_line, e.end_line, e.text, e.kind, e.resolution, e.confidence,
                    w.precision, d.qualified_name as target, f.is_test, e.src_id, e.src_unit_id
               from wanted as w
               join public.kg_edges as e on e.tenant = $1 and e.repo = $2 and e.dst_id = w.id
               join public.kg_nodes as d on d.tenant = e.tenant and d.repo = e.repo and d.id = e.dst_id
               join public.kg_files as f on f.tenant = e.tenant and f.repo = e.repo and f.id = e.src_id
              where e.src_id <> $4 and e.kind not in ('declares', 'via')
              order by w.precision desc, f.path, e.line, e.kind",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(node.unit_id)
        .bind(node.file_id.unwrap_or(node.id))
        .bind(&node.qualified_name)
        .fetch_all(&self.pool)
        .await
    }

    /// Everything that a file takes from elsewhere, by line; empty for nodes that are no files.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn imports_of(&self, node: &GraphNode) -> Result<Imports, sqlx::Error> {
        let file = node.file_id.unwrap_or(node.id);
        let resolved = sqlx::query_as(
            "select e.line, e.start_line, e.end_line, e.text, e.kind, e.resolution, e.confidence,
                    d.qualified_name as target, d.kind as target_kind, d.path as target_path,
                    d.start_line as target_start_line, d.end_line as target_end_line
               from public.kg_edges as e
               join public.kg_nodes as d on d.tenant = e.tenant and d.repo = e.repo and d.id = e.dst_id
              where e.tenant = $1 and e.repo = $2 and e.src_id = $3 and e.kind <> 'via'
              order by e.line, d.qualified_name",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(file)
        .fetch_all(&self.pool)
        .await?;
        let unresolved = sqlx::query_as(
            "select f.path, u.start_line, u.end_line, u.text, u.reason
               from public.kg_unresolved as u
               join public.kg_files as f on f.tenant = u.tenant and f.repo = u.repo and f.id = u.file_id
              where u.tenant = $1 and u.repo = $2 and u.file_id = $3
              order by u.line, u.text",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(file)
        .fetch_all(&self.pool)
        .await?;
        Ok(Imports { resolved, unresolved })
    }

    /// Unresolved references that mention a name: how many, and the first twenty. They may be uses of the node.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn unresolved_mentions(&self, node: &GraphNode) -> Result<(i64, Vec<UnresolvedUse>), sqlx::Error> {
        let count: i64 = sqlx::query_scalar(
            "select coalesce(sum(count), 0)
               from public.kg_unresolved
              where tenant = $1 and repo = $2 and $3 = any(names)",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(&node.name)
        .fetch_one(&self.pool)
        .await?;
        let rows = sqlx::query_as(
            "select f.path, u.start_line, u.end_line, u.text, u.reason
               from public.kg_unresolved as u
               join public.kg_files as f on f.tenant = u.tenant and f.repo = u.repo and f.id = u.file_id
              where u.tenant = $1 and u.repo = $2 and $3 = any(u.names)
              order by f.path, u.line
              limit $4",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(&node.name)
        .bind(MENTION_LIMIT)
        .fetch_all(&self.pool)
        .await?;
        Ok((count, rows))
    }
}
