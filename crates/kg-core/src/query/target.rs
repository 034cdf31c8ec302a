//! From what a person writes (`bus.rs`, `bus_core::claim`, `./util`, `Claim`) to nodes; ambiguity is reported, not guessed away.

use serde::Serialize;

use crate::query::{CodeGraph, GraphNode};

/// Most candidates that an ambiguous name reports.
const CANDIDATE_LIMIT: usize = 20;

/// Endings that people leave out of file names.
const ENDINGS: [&str; 12] = ["rs", "py", "ts", "tsx", "js", "jsx", "go", "mjs", "cjs", "mts", "cts", "pyi"];

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "found", content = "nodes", rename_all = "lowercase")]
pub enum Found {
    /// Exactly one node.
    One(Box<GraphNode>),
    /// Several nodes fit equally well, at most 20 are listed.
    Many(Vec<GraphNode>),
    /// None fits; these have a similar name.
    Nothing(Vec<GraphNode>),
}

impl CodeGraph {
    /// Finds the node that a piece of text names: a path or its end, a qualified name or its end, a bare name.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn find_target(&self, text: &str) -> Result<Found, sqlx::Error> {
        let wanted = clean(text);
        if wanted.is_empty() {
            return Ok(Found::Nothing(Vec::new()));
        }
        let by_path = self.nodes_by_path(&wanted).await?;
        if !by_path.is_empty() {
            return Ok(one_or_many(by_path));
        }
        let parts = name_parts(&wanted);
        let Some(last) = parts.last() else { return Ok(Found::Nothing(Vec::new())) };
        let named = self.nodes_by_name(last).await?;
        let fitting = |exact_case: bool| -> Vec<GraphNode> {
            let matches = |node: &&GraphNode| (!exact_case || node.name == *last) && fits(node, &parts);
            named.iter().filter(matches).cloned().collect()
        };
        let mut found = fitting(true);
        if found.is_empty() {
            found = fitting(false);
        }
        if found.is_empty() {
            return Ok(Found::Nothing(named.into_iter().take(CANDIDATE_LIMIT).collect()));
        }
        Ok(one_or_many(shortest_names(found, parts.len())))
    }

    /// Files and directories whose path is, or ends with, the text; the ending may be missing.
    async fn nodes_by_path(&self, wanted: &str) -> Result<Vec<GraphNode>, sqlx::Error> {
        let mut candidates = vec![wanted.to_owned()];
        let has_ending = wanted.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending));
        if wanted.contains('/') && !has_ending {
            let endings = ENDINGS.iter().map(|ending| format!("{wanted}.{ending}"));
            candidates.extend(endings);
            let entries = ["src/lib.rs", "src/main.rs", "mod.rs", "__init__.py", "index.ts", "index.tsx", "index.js"];
            candidates.extend(entries.iter().map(|entry| format!("{wanted}/{entry}")));
        } else if !has_ending {
            // A bare word is a name first; as a path it must be exact.
            return self.nodes_at(&candidates, false).await;
        }
        let exact = self.nodes_at(&candidates, false).await?;
        if exact.is_empty() { self.nodes_at(&candidates, true).await } else { Ok(exact) }
    }

    async fn nodes_at(&self, candidates: &[String], as_ending: bool) -> Result<Vec<GraphNode>, sqlx::Error> {
        let nodes: Vec<GraphNode> = sqlx::query_as(
            "select n.id, n.kind, n.name, n.qualified_name, n.language, n.path, n.start_line,
                    n.end_line, n.file_id, n.unit_id
               from public.kg_nodes as n
              where n.tenant = $1 and n.repo = $2
                and n.kind in ('file', 'package', 'asset')
                and case when $4
                         then exists (select from unnest($3::text[]) as c (path)
                                       where right(n.path, length(c.path) + 1) = '/' || c.path)
                         else n.path = any($3) end
              order by array_position($3::text[], n.path), n.path
              limit 21",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(candidates)
        .bind(as_ending)
        .fetch_all(&self.pool)
        .await?;
        // `crates/a` may be a package and have an entry file: the candidates are in order of preference.
        if !as_ending {
            let best = candidates.iter().find_map(|path| nodes.iter().find(|node| node.path.as_ref() == Some(path)));
            return Ok(best.cloned().into_iter().collect());
        }
        Ok(nodes)
    }

    async fn nodes_by_name(&self, name: &str) -> Result<Vec<GraphNode>, sqlx::Error> {
        sqlx::query_as(
            "select id, kind, name, qualified_name, language, path, start_line, end_line, file_id, unit_id
               from public.kg_nodes
              where tenant = $1 and repo = $2 and lower(name) in (lower($3), replace(lower($3), '-', '_'))
              order by (kind = 'file') desc, length(qualified_name), qualified_name, path, start_line
              limit 500",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(name)
        .fetch_all(&self.pool)
        .await
    }
}

/// Takes off quotes, punctuation, a leading `./` or `/`, a trailing `()`, and a trailing `:12`.
fn clean(text: &str) -> String {
    let mut rest = text.trim().trim_matches(['`', '"', '\'', ',', ';', '?', '!', '<', '>']);
    rest = rest.trim_end_matches("()").trim_end_matches(['.', ':']);
    if let Some((before, digits)) = rest.rsplit_once(':') {
        let is_line = !digits.is_empty() && digits.chars().all(|letter| letter.is_ascii_digit() || letter == '-');
        if is_line && !before.ends_with(':') {
            rest = before;
        }
    }
    while let Some(inner) =
        rest.strip_prefix("./").or_else(|| rest.strip_prefix("../")).or_else(|| rest.strip_prefix('/'))
    {
        rest = inner;
    }
    rest.trim_end_matches('/').to_owned()
}

/// The parts of a qualified name in any language's writing, without words that mean "from here".
fn name_parts(text: &str) -> Vec<&str> {
    text.split([':', '.', '/', '#', '\\']).filter(|part| !matches!(*part, "" | "crate" | "self" | "super")).collect()
}

/// Whether the parts end the node's qualified name, or its path with the name behind it.
fn fits(node: &GraphNode, parts: &[&str]) -> bool {
    if ends_with(&name_parts(&node.qualified_name), parts) {
        return true;
    }
    let path = node.path.as_deref().unwrap_or("");
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    let mut by_path = name_parts(stem);
    if node.is_definition() {
        by_path.push(&node.name);
    }
    ends_with(&by_path, parts)
}

fn ends_with(own: &[&str], parts: &[&str]) -> bool {
    // `-` in a package name and `_` in code are the same to people.
    let same = |left: &str, right: &str| {
        left.eq_ignore_ascii_case(right) || left.replace('-', "_").eq_ignore_ascii_case(&right.replace('-', "_"))
    };
    own.len() >= parts.len() && own.iter().rev().zip(parts.iter().rev()).all(|(left, right)| same(left, right))
}

/// A name that is complete as written wins over longer names that only end with it.
fn shortest_names(found: Vec<GraphNode>, length: usize) -> Vec<GraphNode> {
    let complete: Vec<GraphNode> =
        found.iter().filter(|node| length > 1 && name_parts(&node.qualified_name).len() == length).cloned().collect();
    if complete.is_empty() { found } else { complete }
}

fn one_or_many(mut found: Vec<GraphNode>) -> Found {
    if found.len() > 1 {
        found.truncate(CANDIDATE_LIMIT);
        return Found::Many(found);
    }
    match found.pop() {
        Some(node) => Found::One(Box::new(node)),
        None => Found::Nothing(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoration_around_names_is_removed() {
        for (text, expected) in [
            ("`bus.rs`", "bus.rs"),
            ("./util", "util"),
            ("src/claim.rs:12", "src/claim.rs"),
            ("src/claim.rs:12-40", "src/claim.rs"),
            ("bus_core::claim", "bus_core::claim"),
            ("claim()", "claim"),
            ("Claim?", "Claim"),
            ("crates/bus-core/", "crates/bus-core"),
        ] {
            assert_eq!(clean(text), expected, "{text}");
        }
    }
}
