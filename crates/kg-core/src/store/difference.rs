//! What must be written so that the stored graph becomes the new one.

use crate::{
    graph::{Edge, EdgeKey, Graph, Node, Unresolved, UnresolvedKey},
    store::read::Stored,
    walk::ReadTree,
};

/// New and changed rows, and the keys of those that go.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) changed_files: Vec<String>,
    pub(super) removed_files: Vec<String>,
    pub(super) nodes: Vec<Node>,
    pub(super) gone_nodes: Vec<i64>,
    pub(super) edges: Vec<(EdgeKey, Edge)>,
    pub(super) gone_edges: Vec<EdgeKey>,
    pub(super) unresolved: Vec<(UnresolvedKey, Unresolved)>,
    pub(super) gone_unresolved: Vec<UnresolvedKey>,
}

impl Difference {
    pub(super) fn between(stored: &Stored, read: &ReadTree, graph: &Graph) -> Self {
        let mut difference = Self::default();
        for (path, stamp) in &read.stamps {
            let same =
                stored.files.get(path).is_some_and(|(sha256, is_current)| *is_current && *sha256 == stamp.sha256);
            if !same {
                difference.changed_files.push(path.clone());
            }
        }
        let gone = stored.files.keys().filter(|path| !read.stamps.contains_key(*path));
        difference.removed_files = gone.cloned().collect();

        let old = &stored.graph;
        for (id, node) in &graph.nodes {
            if old.nodes.get(id) != Some(node) {
                difference.nodes.push(node.clone());
            }
        }
        for (key, edge) in &graph.edges {
            if old.edges.get(key) != Some(edge) {
                difference.edges.push((key.clone(), edge.clone()));
            }
        }
        for (key, unresolved) in &graph.unresolved {
            if old.unresolved.get(key) != Some(unresolved) {
                difference.unresolved.push((key.clone(), unresolved.clone()));
            }
        }
        let gone = old.nodes.keys().filter(|id| !graph.nodes.contains_key(id));
        difference.gone_nodes = gone.copied().collect();
        let gone = old.edges.keys().filter(|key| !graph.edges.contains_key(key));
        difference.gone_edges = gone.cloned().collect();
        let gone = old.unresolved.keys().filter(|key| !graph.unresolved.contains_key(key));
        difference.gone_unresolved = gone.cloned().collect();
        difference
    }

    pub(super) fn len(&self) -> usize {
        self.changed_files.len()
            + self.removed_files.len()
            + self.nodes.len()
            + self.gone_nodes.len()
            + self.edges.len()
            + self.gone_edges.len()
            + self.unresolved.len()
            + self.gone_unresolved.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
