//! Questions to a stored graph; every row of an answer carries a path and lines, so that it can be cited.

mod cycles;
mod impact;
mod target;
mod uses;

use std::collections::HashMap;

use serde::Serialize;
use sqlx::PgPool;

pub use cycles::{Cycle, CycleEdge};
pub use impact::{AffectedTests, Dependent, Impact};
pub use target::Found;
pub use uses::{Import, Imports, UnresolvedUse, Use};

/// The graph of one repository of one tenant.
#[derive(Debug, Clone)]
pub struct CodeGraph {
    pub(crate) pool: PgPool,
    pub(crate) tenant: String,
    pub(crate) repo: String,
}

/// A node of the graph: a file, a definition, a package or something outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct GraphNode {
    /// Stable id within the repository.
    #[serde(skip)]
    pub id: i64,
    /// `file`, `package`, `asset`, `external`, or a kind of definition such as `function`.
    pub kind: String,
    /// Short name.
    pub name: String,
    /// Full name as its language writes it.
    pub qualified_name: String,
    /// Language, absent for packages, assets and external packages.
    pub language: Option<String>,
    /// File or directory, absent for external packages.
    pub path: Option<String>,
    /// First line, counted from 1; 0 where there are none.
    pub start_line: i32,
    /// Last line.
    pub end_line: i32,
    /// File that holds the node.
    #[serde(skip)]
    pub file_id: Option<i64>,
    /// What is compiled as one with the node.
    #[serde(skip)]
    pub unit_id: i64,
}

impl GraphNode {
    /// Whether the node is a definition inside a file.
    #[must_use]
    pub fn is_definition(&self) -> bool {
        !matches!(self.kind.as_str(), "file" | "package" | "asset" | "external")
    }
}

impl CodeGraph {
    /// Questions about one repository.
    #[must_use]
    pub fn new(pool: PgPool, tenant: impl Into<String>, repo: impl Into<String>) -> Self {
        Self { pool, tenant: tenant.into(), repo: repo.into() }
    }

    /// Hash (lowercase hex of SHA-256) of the content that each of these files had when the graph was built; files that
    /// are not in the graph are left out.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn content_hashes(&self, paths: &[String]) -> Result<HashMap<String, String>, sqlx::Error> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select f.path, encode(f.content_sha256, 'hex')
               from public.kg_files f
              where f.tenant = $1 and f.repo = $2 and f.path = any ($3)",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(paths)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().collect())
    }

    /// Number of files in the graph; 0 means that it was never built or that the tree has no source files.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn file_count(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select count(*) from public.kg_files where tenant = $1 and repo = $2")
            .bind(&self.tenant)
            .bind(&self.repo)
            .fetch_one(&self.pool)
            .await
    }
}
