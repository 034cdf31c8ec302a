//! Import cycles: strongly connected groups of files or packages, with the edges that close them.

use std::collections::HashMap;

use serde::Serialize;

use crate::query::CodeGraph;

/// A reference inside a cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct CycleEdge {
    /// File of the reference.
    pub path: String,
    /// First line of the statement.
    pub start_line: i32,
    /// Last line of the statement.
    pub end_line: i32,
    /// The reference in one line.
    pub text: String,
    /// File or package that it leads to.
    pub target: String,
    #[serde(skip)]
    src_unit_id: i64,
}

/// Files or packages that all reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cycle {
    /// Paths of the members, sorted.
    pub members: Vec<String>,
    /// One reference for each pair of members.
    pub edges: Vec<CycleEdge>,
}

impl CodeGraph {
    /// All import cycles, longest first; module declarations do not count.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn cycles(&self) -> Result<Vec<Cycle>, sqlx::Error> {
        let pairs: Vec<(i64, i64)> = sqlx::query_as(
            "select distinct e.src_unit_id, e.dst_unit_id
               from public.kg_edges as e
              where e.tenant = $1 and e.repo = $2
                and e.kind not in ('declares', 'via')
                and e.resolution not in ('external', 'external_undeclared')
                and e.src_unit_id <> e.dst_unit_id",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .fetch_all(&self.pool)
        .await?;
        let groups = connected_groups(&pairs);
        let members: Vec<i64> = groups.iter().flatten().copied().collect();
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let paths: Vec<(i64, String)> = sqlx::query_as(
            "select id, coalesce(path, qualified_name)
               from public.kg_nodes
              where tenant = $1 and repo = $2 and id = any($3)",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(&members)
        .fetch_all(&self.pool)
        .await?;
        let paths: HashMap<i64, String> = paths.into_iter().collect();
        let edges = self.edges_among(&members).await?;
        let mut cycles: Vec<Cycle> = groups
            .into_iter()
            .map(|group| {
                let mut names: Vec<String> = group.iter().filter_map(|id| paths.get(id).cloned()).collect();
                names.sort();
                let inside = |edge: &&CycleEdge| group.contains(&edge.src_unit_id) && names.contains(&edge.target);
                let edges = edges.iter().filter(inside).cloned().collect();
                Cycle { members: names, edges }
            })
            .collect();
        cycles.sort_by(|left, right| {
            right.members.len().cmp(&left.members.len()).then_with(|| left.members.cmp(&right.members))
        });
        Ok(cycles)
    }

    async fn edges_among(&self, units: &[i64]) -> Result<Vec<CycleEdge>, sqlx::Error> {
        sqlx::query_as(
            "select distinct on (e.src_unit_id, e.dst_unit_id)
                    f.path, e.start_line, e.end_line, e.text, coalesce(d.path, d.qualified_name) as target,
                    e.src_unit_id
               from public.kg_edges as e
               join public.kg_files as f on f.tenant = e.tenant and f.repo = e.repo and f.id = e.src_id
               join public.kg_nodes as d on d.tenant = e.tenant and d.repo = e.repo and d.id = e.dst_unit_id
              where e.tenant = $1 and e.repo = $2
                and e.src_unit_id = any($3) and e.dst_unit_id = any($3)
                and e.src_unit_id <> e.dst_unit_id
                and e.kind not in ('declares', 'via')
              order by e.src_unit_id, e.dst_unit_id, f.path, e.line",
        )
        .bind(&self.tenant)
        .bind(&self.repo)
        .bind(units)
        .fetch_all(&self.pool)
        .await
    }
}

/// Where the search stands at one node.
struct Visit {
    node: usize,
    next_child: usize,
}

/// Tarjan's strongly connected components with more than one member, without recursion.
fn connected_groups(pairs: &[(i64, i64)]) -> Vec<Vec<i64>> {
    let mut index_of: HashMap<i64, usize> = HashMap::new();
    let mut ids: Vec<i64> = Vec::new();
    let mut children: Vec<Vec<usize>> = Vec::new();
    for (from, to) in pairs {
        let [from, to] = [*from, *to].map(|id| {
            *index_of.entry(id).or_insert_with(|| {
                ids.push(id);
                children.push(Vec::new());
                ids.len() - 1
            })
        });
        children[from].push(to);
    }
    let mut search = Search {
        order: vec![None; ids.len()],
        low: vec![0; ids.len()],
        on_stack: vec![false; ids.len()],
        stack: Vec::new(),
        counter: 0,
    };
    let mut groups = Vec::new();
    for start in 0..ids.len() {
        if search.order[start].is_none() {
            search.from(start, &children, &mut groups);
        }
    }
    groups.into_iter().map(|group| group.into_iter().map(|index| ids[index]).collect()).collect()
}

struct Search {
    order: Vec<Option<usize>>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    counter: usize,
}

impl Search {
    fn enter(&mut self, node: usize) -> Visit {
        self.order[node] = Some(self.counter);
        self.low[node] = self.counter;
        self.counter += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
        Visit { node, next_child: 0 }
    }

    fn from(&mut self, start: usize, children: &[Vec<usize>], groups: &mut Vec<Vec<usize>>) {
        let mut visits = vec![self.enter(start)];
        while let Some(visit) = visits.last_mut() {
            let node = visit.node;
            if let Some(child) = children[node].get(visit.next_child).copied() {
                visit.next_child += 1;
                match self.order[child] {
                    None => visits.push(self.enter(child)),
                    Some(order) if self.on_stack[child] => {
                        self.low[node] = self.low[node].min(order);
                    }
                    Some(_) => {}
                }
                continue;
            }
            visits.pop();
            if let Some(parent) = visits.last() {
                self.low[parent.node] = self.low[parent.node].min(self.low[node]);
            }
            if self.order[node] == Some(self.low[node]) {
                let group = self.leave(node);
                if group.len() > 1 {
                    groups.push(group);
                }
            }
        }
    }

    fn leave(&mut self, first: usize) -> Vec<usize> {
        let mut group = Vec::new();
        while let Some(node) = self.stack.pop() {
            self.on_stack[node] = false;
            group.push(node);
            if node == first {
                break;
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(i64, i64)], expected: &[&[i64]]) {
        let mut groups = connected_groups(pairs);
        for group in &mut groups {
            group.sort_unstable();
        }
        groups.sort();
        assert_eq!(groups, expected, "{pairs:?}");
    }

    #[test]
    fn only_groups_that_reach_each_other_are_cycles() {
        check(&[(1, 2), (2, 3)], &[]);
        check(&[(1, 2), (2, 1), (2, 3)], &[&[1, 2]]);
        check(&[(1, 2), (2, 3), (3, 1), (3, 4), (4, 5), (5, 4)], &[&[1, 2, 3], &[4, 5]]);
        check(&[(1, 2), (2, 3), (3, 2), (3, 1)], &[&[1, 2, 3]]);
    }
}
