//! Indexes a tree, asks it a list of questions and prints where the expected files come and how long it takes.
//!
//! `cargo run --release -p cogo-rag-core --example ask_tree [TREE [QUESTIONS]]`, by default this repository and the
//! questions beside this file. Each line of QUESTIONS is a question, a tab and the paths that answer it, `|` between
//! them. That file lies in the tree that is asked: a line that repeats a question must not come up as its answer.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cogo_rag_core::{Extract, HashEmbedder, Passage, Searcher, embed_pending, extract, sync};
use cogo_test_support::database;

const TENANT: &str = "example";
const COLLECTION: &str = "tree";
const PASSAGES: usize = 12;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let tree = arguments.next().unwrap_or_else(|| here.join("../.."));
    let questions = arguments.next().unwrap_or_else(|| here.join("examples/questions.tsv"));
    let questions = fs::read_to_string(questions)?;

    let database = database().await;
    let embedder = Arc::new(HashEmbedder::default());
    let started = Instant::now();
    let report = sync(&database.pool, TENANT, COLLECTION, &tree, |_| {}).await?;
    println!("indexed {} files, {} chunks in {:?}", report.indexed, report.chunks, started.elapsed());
    let started = Instant::now();
    while embed_pending(&database.pool, TENANT, COLLECTION, embedder.as_ref(), 256).await?.more {}
    println!("embedded in {:?}", started.elapsed());

    let searcher = Searcher::new(database.pool.clone(), Some(embedder));
    let (mut asked, mut first, mut among_three, mut quoted) = (0, 0, 0, 0);
    for (question, expected) in questions.lines().filter_map(|line| line.split_once('\t')) {
        let is_expected = |path: &str| expected.trim().split('|').any(|one| path == one);
        let retrieved = searcher.search(TENANT, Some(COLLECTION), question, PASSAGES).await?;
        let place = retrieved.passages.iter().position(|passage| is_expected(&passage.path));
        let quotes = match extract(&retrieved) {
            Extract::Evidence { citations, .. } => citations,
            Extract::NoEvidence { .. } => Vec::new(),
        };
        asked += 1;
        first += usize::from(place == Some(0));
        among_three += usize::from(place.is_some_and(|place| place < 3));
        quoted += usize::from(quotes.first().is_some_and(|quote| is_expected(&quote.path)));
        println!("{} {question}", place.map_or_else(|| "-".to_owned(), |place| (place + 1).to_string()));
        retrieved.passages.iter().take(3).for_each(describe);
        if let Some(quote) = quotes.first() {
            println!("    quoted {}\n      {}", quote.reference(), quote.quote.replace('\n', "\n      "));
        }
    }
    println!("{asked} questions: hit@1 {first}, hit@3 {among_three}, first quote {quoted}");
    let times = times(&searcher, &questions).await?;
    if let (Some(middle), Some(late)) = (times.get(times.len() / 2), times.get(times.len() * 9 / 10)) {
        println!("search p50 {middle:?}, p90 {late:?}");
    }
    Ok(())
}

fn describe(passage: &Passage) {
    let Passage { path, start_line, end_line, score, kind, .. } = passage;
    let name = passage.symbol.as_deref().or(passage.heading.as_deref()).unwrap_or("");
    println!("    {score:.3} {path}:{start_line}-{end_line} {kind} {name}");
}

async fn times(searcher: &Searcher, questions: &str) -> Result<Vec<Duration>, cogo_rag_core::Error> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        for (question, _) in questions.lines().filter_map(|line| line.split_once('\t')) {
            let started = Instant::now();
            searcher.search(TENANT, Some(COLLECTION), question, PASSAGES).await?;
            times.push(started.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times)
}
