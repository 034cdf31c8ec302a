//! What may break: dependents level by level, the tests among them, and what is not known.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::query::{CodeGraph, GraphNode, UnresolvedUse, Use};

/// Names of tests listed per file.
const TEST_NAME_LIMIT: i32 = 20;

/// A file that depends on the target, with the reference that makes it so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dependent {
    /// The dependent file.
    pub path: String,
    /// Steps from the target, 1 for direct uses.
    pub depth: u32,
    /// Line of the name itself.
    pub line: i32,
    /// First line of the statement.
    pub start_line: i32,
    /// Last line of the statement.
    pub end_line: i32,
    /// The reference in one line.
    pub text: String,
    /// What the reference takes.
    pub target: String,
    /// Least confidence on the way from the target.
    pub confidence: f32,
    /// Whether the file is a test.
    pub is_test: bool,
}

/// A file with tests that reach the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AffectedTests {
    /// The file.
    pub path: String,
    /// Steps from the target; 0 for tests beside it.
    pub depth: u32,
    /// Lines of the first test, or of the reference where the file has no named tests.
    pub start_line: i32,
    /// Last of these lines.
    pub end_line: i32,
    /// Names of its tests, at most twenty.
    pub names: Vec<String>,
}

/// What may break if the target changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Impact {
    /// What changes.
    pub target: GraphNode,
    /// Dependent files by depth and path.
    pub dependents: Vec<Dependent>,
    /// Tests that reach the target, nearest first.
    pub tests: Vec<AffectedTests>,
    /// Whether there are more dependents beyond the depth that was asked for.
    pub more_beyond_depth: bool,
    /// Unresolved references that mention the target's name: there may be more dependents.
    pub unresolved_mentions: i64,
    /// The first of these references.
    pub unresolved: Vec<UnresolvedUse>,
}

/// How far a change goes through a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// It only passes the name on; who uses the name has an edge to the target itself.
    Passing,
    /// Everything in it may change.
    Whole,
}

#[derive(Default)]
struct Walk {
    reached: HashMap<i64, (Reach, f32)>,
    dependents: BTreeMap<i64, Dependent>,
}

impl CodeGraph {
    /// Dependents of a node up to a depth (1 is direct uses only), affected tests, and what is not known.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn impact(&self, node: &GraphNode, depth: u32) -> Result<Impact, sqlx::Error> {
        let mut walk = Walk::default();
        walk.reached.insert(node.unit_id, (Reach::Whole, 1.0));
        let direct = self.importers(node).await?;
        let mut frontier = walk.take_level(&direct, 1, |_| 1.0);
        let mut level = 1;
        while level < depth && !frontier.is_empty() {
            level += 1;
            let uses = self.uses_of_units(&frontier, &walk).await?;
            let confidence: HashMap<i64, f32> =
                walk.reached.iter().map(|(unit, (_, confidence))| (*unit, *confidence)).collect();
            frontier = walk.take_level_from(&uses, level, &confidence);
        }
        let more_beyond_depth = !frontier.is_empty() && !self.uses_of_units(&frontier, &walk).await?.is_empty();
        let tests = self.affected_tests(node, &walk.dependents).await?;
        let (unresolved_mentions, unresolved) = self.unresolved_mentions(node).await?;
        let mut dependents: Vec<Dependent> = walk.dependents.into_values().collect();
        dependents.sort_by(|left, right| (left.depth, &left.path).cmp(&(right.depth, &right.path)));
        Ok(Impact { target: node.clone(), dependents, tests, more_beyond_depth, unresolved_mentions, unresolved })
    }

    /// Uses of the units of the last level by units that are not reached yet, or only passed through.
    async fn uses_of_units(&self, frontier: &[i64], walk: &Walk) -> Result<Vec<UnitUse>, sqlx::Error> {
        let reach = |unit: &i64| walk.reached.get(unit).map(|(reach, _)| *reach);
        let (whole, passing): (Vec<i64>, Vec<i64>) =
            frontier.iter().partition(|unit| reach(unit) == Some(Reach::Whole));
        let done: Vec<i64> =
            walk.reached.iter().filter(|(_, (reach, _))| *reach == Reach::Whole).map(|(unit, _)| *unit).collect();
        sqlx::query_as(
            // One reference per file is enough to go on: one that does more than pass names on, if there is any.
            "select distinct on (f.path)
                    f.path, e.line, e.start_line, e.end_line, e.text, e.kind, e.resolution, e.confidence,
                    'module' as precision, d.qualified_name as target, f.is_test, e.src_id,
                    e.src_unit_id, e.dst_unit_id
               from public.kg_edges as e
               join public.kg_nodes as d on d.tenant = e.tenant and d.repo = e.repo and d.id = e.dst_id
               join public.kg_files as f on f.tenant = e.tenant and f.repo = e.repo and f.id = e.src_id
              where e.tenant = $1 and e.repo = $2
                and (e.dst_unit_id = any($3)
                     -- who takes all names of a file that passes names on has no edge of its own to the target
                     or (e.dst_unit_id = any($4) and e.kind <> 'via'
                         and (e.dst_id = e.dst_unit_id or d.kind = 'module')))
                and e.kind <> 'declares'
                and e.src_unit_id <> all($5)
              order by f.path, e.kind = 'reexports', e.confidence desc, e.line",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(whole)
        .bind(passing)
        .bind(done)
        .fetch_all(&self.pool)
        .await
    }

    async fn affected_tests(
        &self,
        node: &GraphNode,
        dependents: &BTreeMap<i64, Dependent>,
    ) -> Result<Vec<AffectedTests>, sqlx::Error> {
        let mut files: Vec<i64> = dependents.keys().copied().collect();
        files.extend(node.file_id);
        let rows: Vec<(i64, String, i32, i32, Vec<String>)> = sqlx::query_as(
            "select n.file_id, n.path, min(n.start_line),
                    (array_agg(n.end_line order by n.start_line))[1],
                    (array_agg(n.name order by n.start_line))[1:$4]
               from public.kg_nodes as n
              where n.tenant = $1 and n.repo = $2 and n.kind = 'test' and n.file_id = any($3)
              group by n.file_id, n.path",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(files)
        .bind(TEST_NAME_LIMIT)
        .fetch_all(&self.pool)
        .await?;
        let mut tests: BTreeMap<String, AffectedTests> = BTreeMap::new();
        for (file, path, start_line, end_line, names) in rows {
            let depth = dependents.get(&file).map_or(0, |dependent| dependent.depth);
            let found = AffectedTests { path: path.clone(), depth, start_line, end_line, names };
            tests.insert(path, found);
        }
        for dependent in dependents.values().filter(|dependent| dependent.is_test) {
            tests.entry(dependent.path.clone()).or_insert_with(|| AffectedTests {
                path: dependent.path.clone(),
                depth: dependent.depth,
                start_line: dependent.start_line,
                end_line: dependent.end_line,
                names: Vec::new(),
            });
        }
        let mut tests: Vec<AffectedTests> = tests.into_values().collect();
        tests.sort_by(|left, right| (left.depth, &left.path).cmp(&(right.depth, &right.path)));
        Ok(tests)
    }
}

/// A use together with the unit that it uses.
#[derive(sqlx::FromRow)]
struct UnitUse {
    #[sqlx(flatten)]
    found: Use,
    dst_unit_id: i64,
}

impl Walk {
    fn take_level_from(&mut self, uses: &[UnitUse], depth: u32, confidence: &HashMap<i64, f32>) -> Vec<i64> {
        let mut frontier = Vec::new();
        for found in uses {
            let before = confidence.get(&found.dst_unit_id).copied().unwrap_or(1.0);
            let level = self.take_level(std::slice::from_ref(&found.found), depth, |_| before);
            frontier.extend(level.into_iter().filter(|unit| !frontier.contains(unit)).collect::<Vec<_>>());
        }
        frontier
    }

    /// Records the files of one level and gives the units that are newly reached, or reached farther.
    fn take_level(&mut self, uses: &[Use], depth: u32, before: impl Fn(&Use) -> f32) -> Vec<i64> {
        let mut frontier = Vec::new();
        for found in uses {
            let confidence = found.confidence.min(before(found));
            let reach = if found.kind == "reexports" { Reach::Passing } else { Reach::Whole };
            let known = self.reached.get(&found.src_unit_id).copied();
            let farther = known.is_none_or(|(known, _)| known < reach);
            if farther {
                let best = known.map_or(confidence, |(_, known)| known.max(confidence));
                self.reached.insert(found.src_unit_id, (reach, best));
                if !frontier.contains(&found.src_unit_id) {
                    frontier.push(found.src_unit_id);
                }
            }
            self.dependents.entry(found.src_id).or_insert_with(|| Dependent {
                path: found.path.clone(),
                depth,
                line: found.line,
                start_line: found.start_line,
                end_line: found.end_line,
                text: found.text.clone(),
                target: found.target.clone(),
                confidence,
                is_test: found.is_test,
            });
        }
        frontier
    }
}
