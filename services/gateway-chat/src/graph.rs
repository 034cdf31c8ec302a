//! Answers structural questions from the code graph.

use std::collections::{BTreeSet, HashMap};

use cogo_contracts::ChatReply;
use cogo_kg_core::{AffectedTests, CodeGraph, Cycle, Dependent, Found, GraphNode, Impact, Imports, Use, is_test_path};
use cogo_rag_core::Lines;
use sqlx::PgPool;

use crate::{
    intent::Intent,
    places::{Draft, MAX_PLACES, Place, described},
    reply::{counted, joined},
};

/// How far an impact is followed: beyond five steps nearly everything depends on everything.
const IMPACT_DEPTH: u32 = 5;
/// Names of tests that are shown per file.
const MAX_TEST_NAMES: usize = 3;
/// Lines of a file or definition that stand for it when nothing refers to it.
const HEAD_LINES: i32 = 3;
/// Members of a cycle that are named.
const MAX_MEMBERS: usize = 6;
/// Remark on places in tests.
const TEST: &str = "test";

/// The graphs of a tenant's collections.
pub(crate) struct Graphs<'asked> {
    pub(crate) pool: &'asked PgPool,
    pub(crate) tenant: &'asked str,
    pub(crate) collections: &'asked [String],
}

impl Graphs<'_> {
    /// The answer, if the question is structural and the graph knows what it asks about.
    pub(crate) async fn answer(&self, intent: &Intent) -> anyhow::Result<Option<ChatReply>> {
        let name = match intent {
            Intent::Importers(name) | Intent::Imports(name) | Intent::Impact(name) => name,
            Intent::Cycles => return self.cycles().await,
            Intent::Other => return Ok(None),
        };
        let mut candidates = self.candidates(name).await?;
        if candidates.len() > 1 {
            return self.ambiguous(name, &candidates).await.map(Some);
        }
        let Some((collection, node)) = candidates.pop() else { return Ok(None) };
        let graph = self.graph(&collection);
        let draft = match intent {
            Intent::Imports(_) => imports_of(&graph, &collection, &node).await?,
            Intent::Impact(_) => Some(impact(&collection, &graph.impact(&node, IMPACT_DEPTH).await?)),
            _ => Some(importers(&graph, &collection, &node).await?),
        };
        match draft {
            Some(draft) => draft.finish(self.pool, self.tenant).await.map(Some),
            None => Ok(None),
        }
    }

    fn graph(&self, collection: &str) -> CodeGraph {
        CodeGraph::new(self.pool.clone(), self.tenant, collection)
    }

    /// What the name may stand for, with the collection it is in.
    async fn candidates(&self, name: &str) -> Result<Vec<(String, GraphNode)>, sqlx::Error> {
        let mut candidates = Vec::new();
        for collection in self.collections {
            let found = match self.graph(collection).find_target(name).await? {
                Found::One(node) => vec![*node],
                Found::Many(nodes) => nodes,
                Found::Nothing(_) => Vec::new(),
            };
            candidates.extend(found.into_iter().map(|node| (collection.clone(), node)));
        }
        // who names a thing of the tests as well means the other one
        if candidates.iter().any(|(_, node)| !is_of_tests(node)) {
            candidates.retain(|(_, node)| !is_of_tests(node));
        }
        Ok(candidates)
    }

    async fn ambiguous(&self, name: &str, candidates: &[(String, GraphNode)]) -> anyhow::Result<ChatReply> {
        let collections: BTreeSet<&String> = candidates.iter().map(|(collection, _)| collection).collect();
        let one_collection = collections.len() == 1;
        let hint = if one_collection { "a full name or a path" } else { "a full name or a path, or name a collection" };
        let sentence = format!(
            "`{name}` may be {}; ask again with {hint}:",
            counted(candidates.len(), "thing").replace("thing", "different thing")
        );
        let places = candidates.iter().map(|(collection, node)| {
            let path = node.path.as_deref().unwrap_or(&node.qualified_name);
            Place::new(path, node.start_line, node.start_line, "")
                .in_collection(collection)
                .remark(true, format!("{} {}", node.kind, node.qualified_name))
                .remark(!one_collection, format!("collection {collection}"))
        });
        let collection = candidates.first().map_or("", |(collection, _)| collection);
        Draft::new(collection, sentence).section("", places.collect()).finish(self.pool, self.tenant).await
    }

    async fn cycles(&self) -> anyhow::Result<Option<ChatReply>> {
        let mut files = 0;
        for collection in self.collections {
            let graph = self.graph(collection);
            files += graph.file_count().await?;
            let cycles = graph.cycles().await?;
            if !cycles.is_empty() {
                return cycles_of(collection, &cycles).finish(self.pool, self.tenant).await.map(Some);
            }
        }
        if files == 0 {
            return Ok(None);
        }
        let sentence =
            format!("There are no import cycles among the {files} source files of {}.", joined(self.collections));
        let collection = self.collections.first().map_or("", String::as_str);
        Draft::new(collection, sentence).finish(self.pool, self.tenant).await.map(Some)
    }
}

async fn importers(graph: &CodeGraph, collection: &str, node: &GraphNode) -> Result<Draft, sqlx::Error> {
    let uses = graph.importers(node).await?;
    let (mentions, _) = graph.unresolved_mentions(node).await?;
    let mut places = distinct(uses.iter().map(|found| place_of_use(found, node)).collect());
    // what is shipped before what tests it
    places.sort_by_key(|place| place.remarks.iter().any(|remark| remark == TEST));
    if places.is_empty() {
        let sentence = format!("Nothing in {collection} imports or uses {}.", described(node));
        return Ok(Draft::new(collection, sentence).section("", head(node)).note(doubt(node, mentions)));
    }
    let files: BTreeSet<&str> = places.iter().map(|place| place.lines.path.as_str()).collect();
    let count = counted(places.len(), "place");
    let sentence = format!("{} is used at {count} in {}", described(node), counted(files.len(), "file"));
    if places.len() <= MAX_PLACES {
        return Ok(Draft::new(collection, format!("{sentence}:")).section("", places).note(doubt(node, mentions)));
    }
    let sentence = format!("{sentence}; the first one of each file:");
    Ok(Draft::new(collection, sentence).section("", first_of_each_file(places)).note(doubt(node, mentions)))
}

fn first_of_each_file(places: Vec<Place>) -> Vec<Place> {
    let mut seen = BTreeSet::new();
    places.into_iter().filter(|place| seen.insert(place.lines.path.clone())).collect()
}

fn place_of_use(found: &Use, node: &GraphNode) -> Place {
    Place::new(&found.path, found.start_line, found.end_line, &found.text)
        .remark(found.kind == "reexports", "re-exports it")
        .remark(found.kind == "via", "through it")
        .remark(found.precision == "module" && node.is_definition(), "the whole module")
        .remark(found.is_test, TEST)
}

fn impact(collection: &str, impact: &Impact) -> Draft {
    let node = &impact.target;
    if impact.dependents.is_empty() && impact.tests.is_empty() {
        let sentence = format!("Nothing in {collection} depends on {}, so nothing known breaks.", described(node));
        return Draft::new(collection, sentence).section("", head(node)).note(doubt(node, impact.unresolved_mentions));
    }
    let direct = impact.dependents.iter().filter(|dependent| dependent.depth == 1).count();
    let sentence = format!(
        "If {} changes, {} may be affected, {direct} of them directly, and {} with tests.",
        described(node),
        counted(impact.dependents.len(), "file"),
        counted(impact.tests.len(), "file"),
    );
    let mut draft = Draft::new(collection, sentence);
    let deepest = impact.dependents.iter().map(|dependent| dependent.depth).max().unwrap_or(0);
    for depth in 1..=deepest {
        let level = impact.dependents.iter().filter(|dependent| dependent.depth == depth);
        let heading = if depth == 1 { "Directly:".to_owned() } else { format!("In {depth} steps:") };
        draft = draft.section(heading, level.map(place_of_dependent).collect());
    }
    let more = format!("There are more dependents beyond {IMPACT_DEPTH} steps.");
    draft
        .section("Tests to run:", impact.tests.iter().map(place_of_tests).collect())
        .note(impact.more_beyond_depth.then_some(more))
        .note(doubt(node, impact.unresolved_mentions))
}

fn place_of_dependent(dependent: &Dependent) -> Place {
    Place::new(&dependent.path, dependent.start_line, dependent.end_line, &dependent.text)
        .remark(dependent.is_test, TEST)
        .remark(dependent.confidence < 0.75, format!("confidence {:.1}", dependent.confidence))
}

fn place_of_tests(tests: &AffectedTests) -> Place {
    let shown: Vec<String> = tests.names.iter().take(MAX_TEST_NAMES).cloned().collect();
    let more = if tests.names.len() > shown.len() { ", …" } else { "" };
    Place::new(&tests.path, tests.start_line, tests.end_line, "")
        .remark(!shown.is_empty(), format!("{}{more}", shown.join(", ")))
}

/// Imports are recorded per file, so only files and what stands in them have any.
async fn imports_of(graph: &CodeGraph, collection: &str, node: &GraphNode) -> Result<Option<Draft>, sqlx::Error> {
    let (Some(path), Some(_)) = (&node.path, node.file_id) else { return Ok(None) };
    let Imports { resolved, unresolved } = graph.imports_of(node).await?;
    let place = |import: &cogo_kg_core::Import| {
        let target = import.target_path.as_ref().unwrap_or(&import.target);
        Place::new(path, import.start_line, import.end_line, &import.text).remark(true, format!("→ {target}"))
    };
    let places = distinct(resolved.iter().map(place).collect());
    let nowhere = unresolved.iter().map(|reference| {
        Place::new(&reference.path, reference.start_line, reference.end_line, &reference.text)
            .remark(true, reference.reason.replace('_', " "))
    });
    let nowhere = distinct(nowhere.collect());
    if places.is_empty() && nowhere.is_empty() {
        let sentence = format!("`{path}` imports nothing.");
        return Ok(Some(Draft::new(collection, sentence).section("", head(node))));
    }
    let sentence = format!("`{path}` takes from elsewhere ({}):", counted(places.len(), "reference"));
    let draft = Draft::new(collection, sentence).section("", places);
    Ok(Some(draft.section("References that lead nowhere known:", nowhere)))
}

fn cycles_of(collection: &str, cycles: &[Cycle]) -> Draft {
    let sentence = format!("{collection} has {}:", counted(cycles.len(), "import cycle"));
    let mut draft = Draft::new(collection, sentence);
    for cycle in cycles {
        let places = cycle.edges.iter().map(|edge| {
            Place::new(&edge.path, edge.start_line, edge.end_line, &edge.text)
                .remark(true, format!("→ {}", edge.target))
        });
        draft = draft.section(format!("Between {}:", joined(&shown(&cycle.members))), distinct(places.collect()));
    }
    draft
}

fn shown(members: &[String]) -> Vec<String> {
    if members.len() <= MAX_MEMBERS {
        return members.to_vec();
    }
    let mut shown = members[..MAX_MEMBERS].to_vec();
    shown.push(format!("{} more", members.len() - MAX_MEMBERS));
    shown
}

fn is_of_tests(node: &GraphNode) -> bool {
    node.kind == "test" || node.path.as_deref().is_some_and(is_test_path)
}

/// The first lines of a node stand for it where no reference to it can be shown.
fn head(node: &GraphNode) -> Vec<Place> {
    let Some(path) = node.path.as_ref().filter(|_| node.start_line > 0) else { return Vec::new() };
    vec![Place::new(path, node.start_line, node.end_line.min(node.start_line + HEAD_LINES - 1), "")]
}

fn doubt(node: &GraphNode, mentions: i64) -> Option<String> {
    let count = usize::try_from(mentions).ok().filter(|count| *count > 0)?;
    let verb = if count == 1 { "mentions" } else { "mention" };
    Some(format!("There may be more: {} {verb} `{}`.", counted(count, "unresolved reference"), node.name))
}

/// One place for each statement: `use a::{b, c}` refers to two things.
fn distinct(places: Vec<Place>) -> Vec<Place> {
    let mut distinct: Vec<Place> = Vec::with_capacity(places.len());
    let mut index_of: HashMap<Lines, usize> = HashMap::new();
    for place in places {
        let index = *index_of.entry(place.lines.clone()).or_insert(distinct.len());
        match distinct.get_mut(index) {
            None => distinct.push(place),
            Some(known) => known.absorb(place),
        }
    }
    distinct
}
