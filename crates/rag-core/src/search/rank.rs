//! Fuses the scores of the candidates into one order.

use std::collections::{HashMap, HashSet};

use super::{Components, candidates::Candidate, question::Question};
use crate::embed::dot;

/// Chunks of one file in an answer; more would crowd out the others.
const MAX_PER_FILE: usize = 3;
/// Question and definition agree on the whole qualified name.
const QUALIFIED_BOOST: f64 = 1.0;
/// The question spells the definition's name as a name.
const NAME_BOOST: f64 = 0.8;
/// The question names the file.
const PATH_BOOST: f64 = 0.8;
/// Neighbouring plain words are the definition's name: `hash embedder` for `HashEmbedder`.
const PHRASE_BOOST: f64 = 0.5;
/// One plain word is the definition's name.
const WORD_BOOST: f64 = 0.35;
/// A name that more definitions share than this does not tell which one is meant.
const MEANINGFUL_NAMESAKES: usize = 3;

/// A candidate with its place in the order.
pub(super) struct Ranked {
    pub(super) candidate: Candidate,
    pub(super) score: f64,
    pub(super) components: Components,
}

/// What the candidates are compared by.
pub(super) struct Signals<'call> {
    pub(super) question: &'call Question,
    pub(super) bm25: &'call HashMap<i64, f64>,
    /// The question's vector with the share of the dense score.
    pub(super) dense: Option<(&'call [f32], f64)>,
    /// Chunks of files that the question names.
    pub(super) of_named_files: &'call HashSet<i64>,
}

/// Orders the candidates, best first, and keeps `limit` of them.
pub(super) fn rank(candidates: Vec<Candidate>, signals: &Signals<'_>, limit: usize) -> Vec<Ranked> {
    let namesakes = namesakes(&candidates);
    let best_bm25 = signals.bm25.values().copied().fold(0.0, f64::max);
    let cosines: Vec<Option<f64>> = candidates.iter().map(|candidate| cosine(candidate, signals)).collect();
    let known: Vec<f64> = cosines.iter().flatten().copied().collect();
    let (lowest, highest) =
        (known.iter().copied().fold(f64::MAX, f64::min), known.iter().copied().fold(f64::MIN, f64::max));
    let mut ranked: Vec<Ranked> = candidates
        .into_iter()
        .zip(cosines)
        .map(|(candidate, cosine)| {
            let bm25 = signals.bm25.get(&candidate.chunk_id).copied().unwrap_or(0.0);
            let lexical = if best_bm25 > 0.0 { bm25 / best_bm25 } else { 0.0 };
            // A chunk that still waits for its vector is judged by its words, not put last.
            let (dense, share) = match (cosine, signals.dense) {
                (Some(cosine), Some((_, share))) if highest > lowest => ((cosine - lowest) / (highest - lowest), share),
                _ => (lexical, 0.0),
            };
            let symbol = boost(&candidate, signals, &namesakes);
            let score = ((1.0 - share) * lexical + share * dense) * prior(&candidate, signals.question) + symbol;
            Ranked { candidate, score, components: Components { bm25, dense: cosine, symbol } }
        })
        .collect();
    ranked.sort_by(|left, right| {
        right.score.total_cmp(&left.score).then(left.candidate.chunk_id.cmp(&right.candidate.chunk_id))
    });
    spread(ranked, limit)
}

/// Keeps the order but leaves out copies and all but a few chunks of each file.
fn spread(ranked: Vec<Ranked>, limit: usize) -> Vec<Ranked> {
    let mut of_file: HashMap<i64, usize> = HashMap::new();
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let mut kept = Vec::with_capacity(limit);
    for entry in ranked {
        if kept.len() == limit {
            break;
        }
        let count = of_file.entry(entry.candidate.source_id).or_default();
        if *count < MAX_PER_FILE && seen.insert(entry.candidate.text_sha256.clone()) {
            *count += 1;
            kept.push(entry);
        }
    }
    kept
}

fn cosine(candidate: &Candidate, signals: &Signals<'_>) -> Option<f64> {
    let (question, _) = signals.dense?;
    let vector = candidate.embedding.as_deref().filter(|vector| vector.len() == question.len())?;
    Some(f64::from(dot(question, vector)))
}

/// How many definitions start under each lower-case name.
fn namesakes(candidates: &[Candidate]) -> HashMap<String, usize> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for candidate in candidates.iter().filter(|candidate| starts_definition(candidate) && !is_test(candidate)) {
        if let Some(symbol) = &candidate.symbol {
            *counts.entry(symbol.to_lowercase()).or_default() += 1;
        }
    }
    counts
}

fn starts_definition(candidate: &Candidate) -> bool {
    candidate.symbol.is_some() && candidate.part == 0 && candidate.kind != "members"
}

/// Added when the question names the definition or its file.
fn boost(candidate: &Candidate, signals: &Signals<'_>, namesakes: &HashMap<String, usize>) -> f64 {
    let file = if signals.of_named_files.contains(&candidate.chunk_id) { PATH_BOOST } else { 0.0 };
    let Some(symbol) = candidate.symbol.as_deref().filter(|_| starts_definition(candidate)) else { return file };
    let lower = symbol.to_lowercase();
    let sharing = namesakes.get(&lower).copied().unwrap_or(1).max(1);
    let meaningful = (MEANINGFUL_NAMESAKES as f64 / sharing as f64).min(1.0);
    let question = signals.question;
    let qualified = candidate.qualified_name.as_deref().unwrap_or(symbol).replace("::", ".");
    let full_name = |name: &String| name.contains('.') && ends_with_name(&qualified, name);
    let named = if question.identifiers.iter().any(full_name) {
        QUALIFIED_BOOST
    } else if question.identifiers.contains(symbol) {
        NAME_BOOST * meaningful
    } else if question.identifiers.iter().any(|name| name.rsplit('.').next() == Some(symbol)) {
        NAME_BOOST * meaningful / 2.0
    } else if question.possible_names.contains(&lower) {
        let is_word = question.words.iter().any(|word| word.raw.eq_ignore_ascii_case(&lower));
        let (strength, words) = if is_word { (WORD_BOOST, 1) } else { (PHRASE_BOOST, 2) };
        // In a long question one word that happens to be a name is hardly what it is about.
        let share = (f64::from(words) / question.words.len().max(1) as f64).min(1.0);
        if sharing > MEANINGFUL_NAMESAKES { 0.0 } else { strength * share / sharing as f64 }
    } else {
        0.0
    };
    // An impl block stands under its type's name too, but the definition of the type comes first.
    let share = if candidate.kind == "impl" { 0.3 } else { 1.0 };
    file + named * share * if is_test(candidate) { 0.5 } else { 1.0 }
}

/// `Bus.claim` names `bus.Bus.claim`, but `us.claim` does not.
fn ends_with_name(qualified: &str, name: &str) -> bool {
    let (qualified, name) = (qualified.to_lowercase(), name.to_lowercase());
    qualified == name || qualified.ends_with(&format!(".{name}"))
}

/// Slightly less for what seldom is the answer itself.
fn prior(candidate: &Candidate, question: &Question) -> f64 {
    let test = if is_test(candidate) && !question.asks_about_tests { 0.75 } else { 1.0 };
    let loose = if matches!(candidate.kind.as_str(), "module" | "members") { 0.9 } else { 1.0 };
    let continued = if candidate.part > 0 { 0.95 } else { 1.0 };
    // `impl Bus {` alone repeats the name and says nothing.
    let bare = if candidate.kind == "impl" && candidate.start_line == candidate.end_line { 0.3 } else { 1.0 };
    // An index or grant repeats the names of its table in one line.
    let accessory = if candidate.kind == "index" { 0.7 } else { 1.0 };
    let acts = if question.asks_how && matches!(candidate.kind.as_str(), "function" | "method") { 1.1 } else { 1.0 };
    test * loose * continued * bare * accessory * acts
}

fn is_test(candidate: &Candidate) -> bool {
    let path = format!("/{}", candidate.path.to_lowercase());
    let name = path.rsplit('/').next().unwrap_or(&path);
    let in_test_folder =
        ["/tests/", "/test/", "/__tests__/", "/fixtures/", "/testdata/"].iter().any(|folder| path.contains(folder));
    let test_file =
        name.starts_with("test_") || ["_test.", ".test.", ".spec.", "_spec."].iter().any(|mark| name.contains(mark));
    let in_test_module =
        candidate.qualified_name.as_deref().is_some_and(|name| name.starts_with("tests::") || name == "tests");
    in_test_folder || test_file || in_test_module
}
