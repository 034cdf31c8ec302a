//! Searching: names, paths, tenants, odd questions, and embedders that fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cogo_rag_core::{EmbedError, Embedder, Embedding, HashEmbedder, Passage, Searcher, embed_pending, sync};
use cogo_test_support::database;

use crate::support::{TENANT, Tree};

const FILES: [(&str, &str); 6] = [
    (
        "src/bus.rs",
        "/// Moves messages.\npub struct Bus;\n\nimpl Bus {\n    /// Takes messages for a worker.\n    pub fn claim(&self) {}\n\n    /// Gives them back.\n    pub fn release(&self) {}\n}\n",
    ),
    (
        "src/shop.rs",
        "/// A shop.\npub struct Shop;\n\nimpl Shop {\n    /// Claims a refund from the bank.\n    pub fn claim(&self) {}\n}\n",
    ),
    ("tests/claim_test.rs", "fn claim_claim() { claim(); claim(); claim(); }\n"),
    ("docs/claim.md", "# Claim\n\nTo claim means to take. A claim is a claim is a claim.\n"),
    ("lib/hash_embedder.py", "class HashEmbedder:\n    \"\"\"Makes vectors.\"\"\"\n"),
    ("many.txt", "alpha\n"),
];

fn first(passages: &[Passage]) -> (&str, Option<&str>) {
    let passage = passages.first().expect("a passage is found");
    (&passage.path, passage.symbol.as_deref())
}

#[tokio::test]
async fn definition_of_a_named_symbol_comes_first() {
    let database = database().await;
    Tree::new(&FILES).sync(&database.pool, "repo").await;
    let searcher = Searcher::new(database.pool.clone(), None);
    for (question, path, symbol) in [
        ("what does Bus::claim do?", "src/bus.rs", "Bus::claim"),
        ("what does Shop.claim do?", "src/shop.rs", "Shop::claim"),
        ("where is `release()` defined", "src/bus.rs", "Bus::release"),
        ("how does the hash embedder work", "lib/hash_embedder.py", "HashEmbedder"),
        ("explain HashEmbedder", "lib/hash_embedder.py", "HashEmbedder"),
        ("struct Bus", "src/bus.rs", "Bus"),
    ] {
        let found = searcher.search(TENANT, Some("repo"), question, 5).await.unwrap();
        assert_eq!(first(&found.passages), (path, Some(symbol)), "{question}");
        assert!(found.passages[0].components.symbol > 0.0, "{question}");
    }
    let by_path = searcher.search(TENANT, Some("repo"), "what is in src/shop.rs", 5).await.unwrap();
    assert_eq!(by_path.passages[0].path, "src/shop.rs");
}

#[tokio::test]
async fn symbol_is_found_by_simple_and_by_qualified_name() {
    let database = database().await;
    Tree::new(&FILES).sync(&database.pool, "repo").await;
    let searcher = Searcher::new(database.pool.clone(), None);
    let found = |symbol: &'static str| {
        let searcher = &searcher;
        async move {
            let passages = searcher.passages_for_symbol(TENANT, None, symbol, 10).await.unwrap();
            passages.into_iter().map(|passage| passage.symbol.unwrap()).collect::<Vec<_>>()
        }
    };
    assert_eq!(found("Bus::claim").await, ["Bus::claim"]);
    assert_eq!(found("bus.claim").await, ["Bus::claim"]);
    assert_eq!(found("claim").await.len(), 2);
    assert_eq!(found("Bus").await, ["Bus", "Bus"], "the struct and its impl");
    assert!(found("nothing\0").await.is_empty());
}

#[tokio::test]
async fn search_stays_within_tenant_and_collection() {
    let database = database().await;
    let (ours, other, theirs) = (Tree::new(&FILES[..1]), Tree::new(&FILES[1..2]), Tree::new(&FILES[..2]));
    ours.sync(&database.pool, "ours").await;
    other.sync(&database.pool, "other").await;
    sync(&database.pool, "their-tenant", "ours", theirs.root(), |_| {}).await.unwrap();
    let searcher = Searcher::new(database.pool.clone(), None);
    let paths = |collection: Option<&'static str>| {
        let searcher = &searcher;
        async move {
            let found = searcher.search(TENANT, collection, "claim", 50).await.unwrap();
            let mut paths: Vec<String> = found.passages.into_iter().map(|passage| passage.collection).collect();
            paths.dedup();
            paths.sort();
            paths.dedup();
            (paths, found.chunk_count)
        }
    };
    assert_eq!(paths(Some("ours")).await, (vec!["ours".to_owned()], 4));
    assert_eq!(paths(None).await, (vec!["other".to_owned(), "ours".to_owned()], 7));
    assert_eq!(paths(Some("missing")).await, (vec![], 0));
    assert!(searcher.search("nobody", None, "claim", 5).await.unwrap().passages.is_empty());
}

#[tokio::test]
async fn odd_questions_are_answered_or_empty_but_never_fail() {
    let database = database().await;
    Tree::new(&FILES).sync(&database.pool, "repo").await;
    let searcher = Searcher::new(database.pool.clone(), Some(Arc::new(HashEmbedder::default())));
    let long = "claim_batch the Message of Bus::claim() in src/x.rs ".repeat(5_000);
    for question in ["", "\0", "???", "the of and", "a\0b claim", "%_\\ ' \" ;--", "ü 你好 🙂", long.as_str()] {
        searcher.search(TENANT, None, question, 5).await.unwrap();
    }
    assert!(searcher.search(TENANT, None, "claim", 0).await.unwrap().passages.is_empty());
}

#[tokio::test]
async fn one_file_fills_at_most_three_places_and_copies_none() {
    let database = database().await;
    let tree =
        Tree::new(&[("copy/a.rs", "fn gadget_x() { gadget() }\n"), ("copy/b.rs", "fn gadget_x() { gadget() }\n")]);
    tree.write("big.rs", &(0..20).map(|n| format!("fn gadget_{n}() {{ gadget(gadget) }}\n\n")).collect::<String>());
    tree.sync(&database.pool, "repo").await;
    let searcher = Searcher::new(database.pool.clone(), None);
    let found = searcher.search(TENANT, None, "gadget", 20).await.unwrap().passages;
    assert_eq!(found.iter().filter(|passage| passage.path == "big.rs").count(), 3);
    assert_eq!(found.iter().filter(|passage| passage.path.starts_with("copy/")).count(), 1);
}

/// Stands for a model: knows that "refund" and "reimbursement" mean the same, and can be down.
#[derive(Default)]
struct Meaning {
    down: AtomicBool,
}

impl Embedder for Meaning {
    fn identity(&self) -> &str {
        "meaning/2/1"
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn degraded(&self) -> bool {
        false
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        let vector = |text: &String| {
            if text.contains("refund") || text.contains("reimbursement") { vec![1.0, 0.0] } else { vec![0.0, 1.0] }
        };
        let answer = if self.down.load(Ordering::Relaxed) {
            Err(EmbedError::Unavailable("no route".into()))
        } else {
            Ok(texts.iter().map(vector).collect())
        };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test]
async fn model_vectors_find_what_no_word_finds_and_follow_changes() {
    let database = database().await;
    let tree = Tree::new(&FILES);
    tree.sync(&database.pool, "repo").await;
    let embedder = Arc::new(Meaning::default());
    let searcher = Searcher::new(database.pool.clone(), Some(Arc::clone(&embedder) as Arc<dyn Embedder>));
    let question = "customer wants reimbursement";
    assert!(searcher.search(TENANT, None, question, 5).await.unwrap().passages.is_empty(), "nothing embedded yet");
    while embed_pending(&database.pool, TENANT, "repo", embedder.as_ref(), 4).await.unwrap().more {}

    let searcher = Searcher::new(database.pool.clone(), Some(Arc::clone(&embedder) as Arc<dyn Embedder>));
    let found = searcher.search(TENANT, None, question, 5).await.unwrap();
    assert!(found.semantic);
    assert_eq!(first(&found.passages), ("src/shop.rs", Some("Shop::claim")));

    tree.remove("src/shop.rs");
    tree.sync(&database.pool, "repo").await;
    let found = searcher.search(TENANT, None, question, 5).await.unwrap();
    assert!(found.passages.iter().all(|passage| passage.path != "src/shop.rs"), "removed chunks are not returned");

    embedder.down.store(true, Ordering::Relaxed);
    let found = searcher.search(TENANT, None, "Bus::claim", 5).await.unwrap();
    assert!(!found.semantic);
    assert_eq!(first(&found.passages), ("src/bus.rs", Some("Bus::claim")));
}

#[tokio::test]
async fn three_thousand_chunks_without_statistics_are_changed_and_searched_quickly() {
    let database = database().await;
    let tree = Tree::new(&[]);
    let words = [
        "claim", "message", "lease", "worker", "retry", "budget", "agent", "queue", "tenant", "decide", "route", "span",
    ];
    for file in 0..300_usize {
        let text: String = (0..10_usize)
            .map(|n| {
                let word = |step: usize| words[(file * 7 + n * 5 + step * step) % words.len()];
                let body: String = (0..12)
                    .map(|row| {
                        format!("    let {}_{row} = {}({}_{});\n", word(row), word(row + 1), word(row + 2), file)
                    })
                    .collect();
                format!(
                    "/// The {} of a {} for {}.\nfn {}_{}_{file}_{n}() {{\n{body}}}\n\n",
                    word(1),
                    word(2),
                    word(3),
                    word(4),
                    word(5)
                )
            })
            .collect();
        tree.write(&format!("src/d{}/f{file}.rs", file % 20), &text);
    }
    let started = Instant::now();
    let report = tree.sync(&database.pool, "repo").await;
    let indexed = started.elapsed();
    assert_eq!(report.chunks, 3_000);
    // The planner knows nothing of the new rows yet; a plan that walks all postings per key takes seconds here.
    // The fastest of some, since the machine may stand still in any one of them.
    let mut changed = Duration::MAX;
    for round in 0..5 {
        tree.write("src/d0/f0.rs", &format!("fn changed_{round}() {{}}\n"));
        let started = Instant::now();
        assert_eq!(tree.sync(&database.pool, "repo").await.indexed, 1);
        changed = changed.min(started.elapsed());
    }
    assert!(changed.as_millis() < 2_000, "{changed:?}");
    let embedder = HashEmbedder::default();
    let started = Instant::now();
    while embed_pending(&database.pool, TENANT, "repo", &embedder, 256).await.unwrap().more {}
    let embedded = started.elapsed();
    let searcher = Searcher::new(database.pool.clone(), Some(Arc::new(embedder)));
    let mut times = Vec::new();
    for round in 0..60 {
        let question = format!(
            "how does the worker retry a message when the lease of agent {} is lost",
            words[round % words.len()]
        );
        let started = Instant::now();
        let found = searcher.search(TENANT, Some("repo"), &question, 8).await.unwrap();
        times.push(started.elapsed());
        assert_eq!(found.passages.len(), 8);
    }
    times.sort();
    println!(
        "index {indexed:?}, change {changed:?}, embed {embedded:?}, search p50 {:?}, p90 {:?}",
        times[30], times[54]
    );
    // Ten times the aim, and the fastest of all, since other tests share the cores; the median is printed above.
    assert!(times[0].as_millis() < 400, "{:?}", times[0]);
}
