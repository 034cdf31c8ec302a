//! The report on a repository's graph: what is in it, how much of it is resolved, and where it is tangled.

use std::fmt::Write as _;

use serde::Serialize;

use crate::query::{CodeGraph, Cycle};

/// Rows in each list of the report.
const LIST_LIMIT: i64 = 20;

/// A name and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Count {
    /// What is counted.
    pub name: String,
    /// How often.
    pub count: i64,
}

/// Counts of one language.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct LanguageReport {
    /// The language.
    pub language: String,
    /// Source files.
    pub files: i64,
    /// Lines in them.
    pub lines: i64,
    /// Files that the parser could not read entirely.
    pub files_with_parse_errors: i64,
    /// Definitions.
    pub definitions: i64,
    /// References that lead into the tree.
    pub internal: i64,
    /// References that lead to packages outside.
    pub external: i64,
    /// References that lead nowhere known.
    pub unresolved: i64,
    /// `internal / (internal + unresolved)`, 1 if there are none.
    pub resolution_rate: f64,
}

/// An unresolved reason with its language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct ReasonCount {
    /// The language.
    pub language: String,
    /// Why references lead nowhere.
    pub reason: String,
    /// How many.
    pub count: i64,
    /// One of them, as `path:line text`.
    pub example: String,
}

/// What the graph of a repository looks like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphReport {
    /// Name of the repository.
    pub repo: String,
    /// Per language, largest first.
    pub languages: Vec<LanguageReport>,
    /// Nodes per kind, most frequent first.
    pub kinds: Vec<Count>,
    /// Why references lead nowhere, most frequent first.
    pub unresolved_reasons: Vec<ReasonCount>,
    /// Packages outside, by the number of files that use them.
    pub external_dependencies: Vec<Count>,
    /// Files and packages by the number of files that use them.
    pub most_imported: Vec<Count>,
    /// Groups that import each other.
    pub cycles: Vec<Cycle>,
    /// Files that nothing refers to and that refer to nothing in the tree, at most twenty.
    pub orphans: Vec<String>,
}

impl CodeGraph {
    /// Gathers the report.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn report(&self) -> Result<GraphReport, sqlx::Error> {
        Ok(GraphReport {
            repo: self.repo.clone(),
            languages: self.languages().await?,
            kinds: self.kinds().await?,
            unresolved_reasons: self.reasons().await?,
            external_dependencies: self.externals().await?,
            most_imported: self.most_imported().await?,
            cycles: self.cycles().await?,
            orphans: self.orphans().await?,
        })
    }

    async fn languages(&self) -> Result<Vec<LanguageReport>, sqlx::Error> {
        sqlx::query_as(
            "with per_file as (
               select f.language, f.lines, f.parse_errors,
                      (select count(*) from public.kg_nodes as n
                        where n.tenant = f.tenant and n.repo = f.repo and n.file_id = f.id
                          and n.kind <> 'file') as definitions,
                      (select coalesce(sum(e.count), 0) from public.kg_edges as e
                        where e.tenant = f.tenant and e.repo = f.repo and e.src_id = f.id
                          and e.kind <> 'via'
                          and e.resolution not in ('external', 'external_undeclared')) as internal,
                      (select coalesce(sum(e.count), 0) from public.kg_edges as e
                        where e.tenant = f.tenant and e.repo = f.repo and e.src_id = f.id
                          and e.resolution in ('external', 'external_undeclared')) as external,
                      (select coalesce(sum(u.count), 0) from public.kg_unresolved as u
                        where u.tenant = f.tenant and u.repo = f.repo and u.file_id = f.id) as unresolved
                 from public.kg_files as f
                where f.tenant = $1 and f.repo = $2
             )
             select language, count(*) as files, sum(lines)::bigint as lines,
                    count(*) filter (where parse_errors) as files_with_parse_errors,
                    sum(definitions)::bigint as definitions, sum(internal)::bigint as internal,
                    sum(external)::bigint as external, sum(unresolved)::bigint as unresolved,
                    coalesce(sum(internal)::float8 / nullif(sum(internal) + sum(unresolved), 0)::float8, 1.0)
                      as resolution_rate
               from per_file
              group by language
              order by files desc, language",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .fetch_all(&self.pool)
        .await
    }

    async fn kinds(&self) -> Result<Vec<Count>, sqlx::Error> {
        sqlx::query_as(
            "select kind as name, count(*) as count
               from public.kg_nodes
              where tenant = $1 and repo = $2
              group by kind
              order by count desc, kind",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .fetch_all(&self.pool)
        .await
    }

    async fn reasons(&self) -> Result<Vec<ReasonCount>, sqlx::Error> {
        sqlx::query_as(
            "select f.language, u.reason, sum(u.count)::bigint as count,
                    min(f.path || ':' || u.line || ' ' || u.text) as example
               from public.kg_unresolved as u
               join public.kg_files as f on f.tenant = u.tenant and f.repo = u.repo and f.id = u.file_id
              where u.tenant = $1 and u.repo = $2
              group by f.language, u.reason
              order by count desc, f.language, u.reason
              limit $3",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(LIST_LIMIT)
        .fetch_all(&self.pool)
        .await
    }

    async fn externals(&self) -> Result<Vec<Count>, sqlx::Error> {
        sqlx::query_as(
            "select n.qualified_name as name, count(distinct e.src_id) as count
               from public.kg_nodes as n
               join public.kg_edges as e on e.tenant = n.tenant and e.repo = n.repo and e.dst_id = n.id
              where n.tenant = $1 and n.repo = $2 and n.kind = 'external'
              group by n.qualified_name
              order by count desc, n.qualified_name
              limit $3",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(LIST_LIMIT)
        .fetch_all(&self.pool)
        .await
    }

    async fn most_imported(&self) -> Result<Vec<Count>, sqlx::Error> {
        sqlx::query_as(
            "select coalesce(n.path, n.qualified_name) as name, count(distinct e.src_id) as count
               from public.kg_edges as e
               join public.kg_nodes as n on n.tenant = e.tenant and n.repo = e.repo and n.id = e.dst_unit_id
              where e.tenant = $1 and e.repo = $2 and e.kind not in ('declares', 'via')
                and n.kind in ('file', 'package') and e.src_unit_id <> e.dst_unit_id
              group by 1
              order by count desc, name
              limit $3",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(LIST_LIMIT)
        .fetch_all(&self.pool)
        .await
    }

    async fn orphans(&self) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar(
            "select f.path
               from public.kg_files as f
               join public.kg_nodes as n on n.tenant = f.tenant and n.repo = f.repo and n.id = f.id
              where f.tenant = $1 and f.repo = $2
                and not exists (select from public.kg_edges as e
                                 where e.tenant = f.tenant and e.repo = f.repo
                                   and e.dst_unit_id = n.unit_id and e.src_id <> f.id)
                and not exists (select from public.kg_edges as e
                                 where e.tenant = f.tenant and e.repo = f.repo and e.src_id = f.id
                                   and e.dst_unit_id <> n.unit_id
                                   and e.resolution not in ('external', 'external_undeclared'))
              order by f.path
              limit $3",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(LIST_LIMIT)
        .fetch_all(&self.pool)
        .await
    }
}

impl GraphReport {
    /// The report as Markdown, for people.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# Code graph of {}\n\n", self.repo);
        text.push_str("| language | files | lines | definitions | internal | external | unresolved | resolved |\n");
        text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
        for row in &self.languages {
            line(
                &mut text,
                format_args!(
                    "| {} | {} | {} | {} | {} | {} | {} | {:.1} % |",
                    row.language,
                    row.files,
                    row.lines,
                    row.definitions,
                    row.internal,
                    row.external,
                    row.unresolved,
                    row.resolution_rate * 100.0,
                ),
            );
        }
        let counts = [
            ("Nodes by kind", &self.kinds),
            ("Most imported", &self.most_imported),
            ("External packages", &self.external_dependencies),
        ];
        for (title, rows) in counts {
            line(&mut text, format_args!("\n## {title}\n"));
            for row in rows {
                line(&mut text, format_args!("- {} × {}", row.count, row.name));
            }
        }
        text.push_str("\n## Unresolved references\n\n");
        for row in &self.unresolved_reasons {
            line(
                &mut text,
                format_args!("- {} × {} ({}), for example `{}`", row.count, row.reason, row.language, row.example,),
            );
        }
        line(&mut text, format_args!("\n## Cycles ({})\n", self.cycles.len()));
        for cycle in &self.cycles {
            line(&mut text, format_args!("- {}", cycle.members.join(" ↔ ")));
        }
        line(&mut text, format_args!("\n## Files without connections ({})\n", self.orphans.len()));
        for path in &self.orphans {
            line(&mut text, format_args!("- {path}"));
        }
        text
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}
