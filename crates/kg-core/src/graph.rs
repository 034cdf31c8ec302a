//! The graph of one tree in memory: nodes, edges and unresolved references, with ids that depend on names alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    facts::{Definition, Reference},
    language::Language,
    resolve::{Outcome, Resolver, SourceTree, Target},
};

/// A node, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Node {
    pub(crate) id: i64,
    /// `file`, `package`, `external`, `asset`, or a kind of definition.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) qualified_name: String,
    pub(crate) language: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) start_line: i32,
    pub(crate) end_line: i32,
    /// The file that owns the node; gone with it.
    pub(crate) file_id: Option<i64>,
    /// What is compiled as one: the file itself, or the package in Go.
    pub(crate) unit_id: i64,
}

/// What tells two edges apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EdgeKey {
    pub(crate) src_id: i64,
    pub(crate) line: i32,
    pub(crate) kind: String,
    pub(crate) dst_id: i64,
}

/// The rest of an edge.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Edge {
    pub(crate) src_unit_id: i64,
    pub(crate) dst_unit_id: i64,
    pub(crate) start_line: i32,
    pub(crate) end_line: i32,
    pub(crate) count: i32,
    pub(crate) text: String,
    pub(crate) resolution: String,
    pub(crate) confidence: f32,
}

/// What tells two unresolved references apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnresolvedKey {
    pub(crate) file_id: i64,
    pub(crate) line: i32,
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) reason: String,
}

/// The rest of an unresolved reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unresolved {
    pub(crate) start_line: i32,
    pub(crate) end_line: i32,
    pub(crate) count: i32,
    /// Names that it mentions, for "may be more".
    pub(crate) names: Vec<String>,
}

/// Where all references went; the parts add up to `references`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// References seen in all files.
    pub references: usize,
    /// Those that lead to something in the tree.
    pub internal: usize,
    /// Those that lead to a package outside.
    pub external: usize,
    /// Those that lead nowhere known.
    pub unresolved: usize,
}

/// The graph of a tree.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: BTreeMap<i64, Node>,
    pub(crate) edges: BTreeMap<EdgeKey, Edge>,
    pub(crate) unresolved: BTreeMap<UnresolvedKey, Unresolved>,
    pub(crate) totals: Totals,
}

/// The id of a file's row and node.
pub(crate) fn file_id(path: &str) -> i64 {
    identity("file", path)
}

/// 63 bits of a digest: the same name has the same id in every build, and within one repository ids do not collide
/// (a million nodes give a chance of one in ten million).
fn identity(kind: &str, key: &str) -> i64 {
    let digest = Sha256::digest(format!("{kind}\0{key}"));
    let mut first = [0_u8; 8];
    first.iter_mut().zip(digest.iter()).for_each(|(to, from)| *to = *from);
    i64::from_be_bytes(first) & i64::MAX
}

impl Graph {
    /// Resolves every reference of the tree.
    pub(crate) fn of(tree: &SourceTree) -> Self {
        let resolver = Resolver::new(tree);
        let mut graph = Self::default();
        let mut definitions = HashMap::new();
        for (path, file) in &tree.files {
            graph.add_file(&resolver, path, file.language, file.facts.lines);
            let ids = graph.add_definitions(&resolver, path, file.language, &file.facts.definitions);
            definitions.insert(path.as_str(), ids);
        }
        for (path, file) in &tree.files {
            for reference in &file.facts.references {
                let outcome = resolver.resolve(path, file.language, reference);
                graph.add_reference(&resolver, &definitions, path, reference, outcome);
            }
        }
        graph
    }

    fn add_file(&mut self, resolver: &Resolver<'_>, path: &str, language: Language, lines: u32) {
        let id = file_id(path);
        let unit_id = match resolver.package_of(path, language) {
            Some(package) => self.package(resolver, &package),
            None => id,
        };
        // In Go the package carries the module's name, a file is known by its path only.
        let (qualified_name, separator) = match language {
            Language::Go => (path.trim_end_matches(".go").to_owned(), "/"),
            Language::Rust => (resolver.module_name(path, language), "::"),
            Language::Python => (resolver.module_name(path, language), "."),
            _ => (resolver.module_name(path, language), "/"),
        };
        let name = last_part(&qualified_name, separator).to_owned();
        let node = Node {
            id,
            kind: "file".to_owned(),
            name,
            qualified_name,
            language: Some(language.as_str().to_owned()),
            path: Some(path.to_owned()),
            start_line: 1,
            end_line: line(lines.max(1)),
            file_id: Some(id),
            unit_id,
        };
        self.nodes.insert(id, node);
    }

    fn add_definitions(
        &mut self,
        resolver: &Resolver<'_>,
        path: &str,
        language: Language,
        definitions: &[Definition],
    ) -> Vec<i64> {
        let owner = file_id(path);
        let unit_id = self.nodes.get(&owner).map_or(owner, |node| node.unit_id);
        let module = resolver.module_name(path, language);
        let mut repeated: HashMap<(&str, &str), usize> = HashMap::new();
        let mut ids = Vec::with_capacity(definitions.len());
        for definition in definitions {
            let kind = definition.kind.as_str();
            let ordinal = repeated.entry((kind, &definition.qualified_name)).or_default();
            let key = format!("{path}\0{}\0{kind}\0{ordinal}", definition.qualified_name);
            *ordinal += 1;
            let id = identity("definition", &key);
            let separator = language.separator();
            let node = Node {
                id,
                kind: kind.to_owned(),
                name: definition.name.clone(),
                qualified_name: format!("{module}{separator}{}", definition.qualified_name),
                language: Some(language.as_str().to_owned()),
                path: Some(path.to_owned()),
                start_line: line(definition.start_line),
                end_line: line(definition.end_line),
                file_id: Some(owner),
                unit_id,
            };
            self.nodes.insert(id, node);
            ids.push(id);
        }
        ids
    }

    fn package(&mut self, resolver: &Resolver<'_>, home: &str) -> i64 {
        let qualified_name = resolver.package_name(home);
        self.plain_node("package", home, qualified_name, Some(home))
    }

    fn plain_node(&mut self, kind: &str, key: &str, qualified_name: String, path: Option<&str>) -> i64 {
        let id = identity(kind, key);
        let name = match kind {
            "external" => qualified_name.split_once(':').map_or("", |(_, name)| name),
            _ => last_part(path.unwrap_or(&qualified_name), "/"),
        };
        let name = name.to_owned();
        self.nodes.entry(id).or_insert_with(|| Node {
            id,
            kind: kind.to_owned(),
            name,
            qualified_name,
            language: None,
            path: path.map(str::to_owned),
            start_line: 0,
            end_line: 0,
            file_id: None,
            unit_id: id,
        });
        id
    }

    fn add_reference(
        &mut self,
        resolver: &Resolver<'_>,
        definitions: &HashMap<&str, Vec<i64>>,
        path: &str,
        reference: &Reference,
        outcome: Outcome,
    ) {
        self.totals.references += 1;
        let (dst_id, resolution, confidence) = match outcome {
            Outcome::Unresolved(reason) => {
                return self.add_unresolved(path, reference, reason.as_str());
            }
            Outcome::External { ecosystem, package, declared } => {
                self.totals.external += 1;
                let key = format!("{ecosystem}:{package}");
                let id = self.plain_node("external", &key, key.clone(), None);
                if declared { (id, "external", 1.0) } else { (id, "external_undeclared", 0.6) }
            }
            Outcome::Internal { target, resolution, via } => {
                self.totals.internal += 1;
                for step in via.iter().filter(|step| *step != path) {
                    let edge = (resolution.as_str(), resolution.confidence());
                    self.add_edge(path, reference, "via", file_id(step), edge);
                }
                let id = match target {
                    Target::File(file) => file_id(&file),
                    Target::Definition { path, index } => definitions
                        .get(path.as_str())
                        .and_then(|ids| ids.get(index))
                        .copied()
                        .unwrap_or_else(|| file_id(&path)),
                    Target::Package(home) => self.package(resolver, &home),
                    Target::Asset(asset) => self.plain_node("asset", &asset, asset.clone(), Some(&asset)),
                };
                (id, resolution.as_str(), resolution.confidence())
            }
        };
        self.add_edge(path, reference, reference.kind.as_str(), dst_id, (resolution, confidence));
    }

    fn add_edge(
        &mut self,
        path: &str,
        reference: &Reference,
        kind: &str,
        dst_id: i64,
        (resolution, confidence): (&str, f32),
    ) {
        let src_id = file_id(path);
        let unit = |id: i64| self.nodes.get(&id).map_or(id, |node| node.unit_id);
        let (src_unit_id, dst_unit_id) = (unit(src_id), unit(dst_id));
        let key = EdgeKey { src_id, line: line(reference.line), kind: kind.to_owned(), dst_id };
        let edge = self.edges.entry(key).or_insert_with(|| Edge {
            src_unit_id,
            dst_unit_id,
            start_line: line(reference.start_line),
            end_line: line(reference.end_line),
            count: 0,
            text: reference.text.clone(),
            resolution: resolution.to_owned(),
            confidence,
        });
        edge.count += 1;
    }

    fn add_unresolved(&mut self, path: &str, reference: &Reference, reason: &str) {
        self.totals.unresolved += 1;
        let key = UnresolvedKey {
            file_id: file_id(path),
            line: line(reference.line),
            kind: reference.kind.as_str().to_owned(),
            text: reference.text.clone(),
            reason: reason.to_owned(),
        };
        let unresolved = self.unresolved.entry(key).or_insert_with(|| {
            let written = if reference.computed { "" } else { reference.module.as_str() };
            let parts = written.split([':', '.', '/']).chain(reference.name.as_deref());
            let names: BTreeSet<&str> = parts.filter(|part| !part.is_empty() && *part != "*").collect();
            Unresolved {
                start_line: line(reference.start_line),
                end_line: line(reference.end_line),
                count: 0,
                names: names.into_iter().map(str::to_owned).collect(),
            }
        });
        unresolved.count += 1;
    }
}

fn line(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// What stands after the last separator.
fn last_part<'n>(name: &'n str, separator: &str) -> &'n str {
    name.rsplit(separator).next().unwrap_or(name)
}
