//! Fuses the scores of the candidates into one order.

use std::collections::{HashMap, HashSet};

use super::{Components, candidates::Candidate, question::Question, reading::Reading};
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

/// Added for sentences that cover a question which asks for them; less than any name that the question mentions.
const TOLD_BOOST: f64 = 0.2;
/// Added for lines that cover the question; one rare word, often repeated, must not win against all words once.
const COVERED_BOOST: f64 = 0.5;
/// What a test does is seldom the answer, though it uses all the words.
const TEST_PRIOR: f64 = 0.7;

/// A candidate with its place in the order.
pub(super) struct Ranked<'call> {
    pub(super) candidate: &'call Candidate,
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
    /// What the lines say, of the candidates that were read.
    pub(super) readings: &'call HashMap<i64, Reading>,
}

/// Orders the candidates, best first, and keeps `limit` of them.
pub(super) fn rank<'call>(candidates: &'call [Candidate], signals: &Signals<'_>, limit: usize) -> Vec<Ranked<'call>> {
    let namesakes = namesakes(candidates);
    let own = |chunk_id: i64| signals.readings.get(&chunk_id).map_or(1.0, |reading| reading.own);
    let best_bm25 = signals.bm25.iter().map(|(chunk_id, bm25)| bm25 * own(*chunk_id)).fold(0.0, f64::max);
    let cosines: Vec<Option<f64>> = candidates.iter().map(|candidate| cosine(candidate, signals)).collect();
    let known: Vec<f64> = cosines.iter().flatten().copied().collect();
    let (lowest, highest) =
        (known.iter().copied().fold(f64::MAX, f64::min), known.iter().copied().fold(f64::MIN, f64::max));
    let mut ranked: Vec<Ranked<'call>> = candidates
        .iter()
        .zip(cosines)
        .map(|(candidate, cosine)| {
            let own = own(candidate.chunk_id);
            let bm25 = signals.bm25.get(&candidate.chunk_id).copied().unwrap_or(0.0) * own;
            let lexical = if best_bm25 > 0.0 { bm25 / best_bm25 } else { 0.0 };
            // A chunk that still waits for its vector is judged by its words, not put last.
            let (dense, share) = match (cosine, signals.dense) {
                (Some(cosine), Some((_, share))) if highest > lowest => {
                    (own * (cosine - lowest) / (highest - lowest), share)
                }
                _ => (lexical, 0.0),
            };
            let symbol = boost(candidate, signals, &namesakes);
            let overlap = (1.0 - share) * lexical + share * dense + read(candidate, signals);
            let score = overlap * prior(candidate, signals) + symbol;
            Ranked { candidate, score, components: Components { bm25, dense: cosine, symbol } }
        })
        .collect();
    ranked.sort_by(|left, right| {
        right.score.total_cmp(&left.score).then(left.candidate.chunk_id.cmp(&right.candidate.chunk_id))
    });
    spread(ranked, limit)
}

/// What reading adds: much of the question in one place, and in sentences where they are asked for.
fn read(candidate: &Candidate, signals: &Signals<'_>) -> f64 {
    let Some(reading) = signals.readings.get(&candidate.chunk_id) else { return 0.0 };
    let told = if signals.question.asks_for_prose { TOLD_BOOST * reading.told } else { 0.0 };
    told + COVERED_BOOST * reading.covered
}

/// Keeps the order but leaves out copies and all but a few chunks of each file.
fn spread(ranked: Vec<Ranked<'_>>, limit: usize) -> Vec<Ranked<'_>> {
    let mut of_file: HashMap<i64, usize> = HashMap::new();
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let mut kept = Vec::with_capacity(limit);
    for entry in ranked {
        if kept.len() == limit {
            break;
        }
        let count = of_file.entry(entry.candidate.source_id).or_default();
        if *count < MAX_PER_FILE && seen.insert(&entry.candidate.text_sha256) {
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
    for candidate in candidates
        .iter()
        .filter(|candidate| candidate.kind != "comment" && starts_definition(candidate) && !is_test(candidate))
    {
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
fn prior(candidate: &Candidate, signals: &Signals<'_>) -> f64 {
    let question = signals.question;
    let is_meant = question.asks_about_tests || signals.of_named_files.contains(&candidate.chunk_id);
    let test = if is_test(candidate) && !is_meant { TEST_PRIOR } else { 1.0 };
    let loose = if matches!(candidate.kind.as_str(), "module" | "members") { 0.9 } else { 1.0 };
    let continued = if candidate.part > 0 { 0.95 } else { 1.0 };
    // `impl Bus {` alone repeats the name and says nothing.
    let bare = if candidate.kind == "impl" && candidate.start_line == candidate.end_line { 0.3 } else { 1.0 };
    // An index or grant repeats the names of its table in one line.
    let accessory = if candidate.kind == "index" { 0.7 } else { 1.0 };
    let acts = if question.asks_how && matches!(candidate.kind.as_str(), "function" | "method") { 1.1 } else { 1.0 };
    test * loose * continued * bare * accessory * acts
}

/// Tests and what serves them: fixtures, benchmarks, examples.
fn is_test(candidate: &Candidate) -> bool {
    let in_test_module =
        candidate.qualified_name.as_deref().is_some_and(|name| name.starts_with("tests::") || name == "tests");
    in_test_module || is_test_path(&candidate.path)
}

fn is_test_path(path: &str) -> bool {
    const FOLDERS: [&str; 11] = [
        "tests",
        "test",
        "__tests__",
        "spec",
        "e2e",
        "fixtures",
        "__fixtures__",
        "testdata",
        "benches",
        "benchmarks",
        "examples",
    ];
    let path = path.to_lowercase();
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let stem = name.split('.').next().unwrap_or(name);
    let marked = name.contains(".test.") || name.contains(".spec.");
    let named = stem.starts_with("test_") || ["_test", "_tests", "_spec"].iter().any(|end| stem.ends_with(end));
    marked || named || stem == "tests" || folders.split('/').any(|folder| FOLDERS.contains(&folder))
}

#[cfg(test)]
mod tests {
    use super::is_test_path;

    #[test]
    fn tests_and_what_serves_them_are_told_by_their_path() {
        for path in [
            "tests/a.rs",
            "crates/x/tests/it/main.rs",
            "src/tests.rs",
            "a/b_test.go",
            "x_tests.rs",
            "test_a.py",
            "web/a.spec.ts",
            "a.test.tsx",
            "src/fixtures/a.json",
            "benches/a.rs",
            "examples/a.rs",
            "crates/e2e/src/a.rs",
        ] {
            assert!(is_test_path(path), "{path}");
        }
        for path in
            ["src/testimony.rs", "src/latest.rs", "src/contest_rules.py", "src/test.rs.md/a", "bench.rs", "a.rs"]
        {
            assert!(!is_test_path(path), "{path}");
        }
    }
}
