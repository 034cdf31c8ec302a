//! Questions about a small project in seven languages find their file, and questions about nothing find nothing.

use std::{fs, path::PathBuf, sync::Arc};

use cogo_rag_core::{Embedder, Extract, HashEmbedder, Searcher, embed_pending, extract, sync};
use cogo_test_support::database;

use crate::support::TENANT;

/// Question, file that answers it, and words that the quoted lines must contain.
const ANSWERED: [(&str, &str, &str); 24] = [
    ("What does Lease::acquire do?", "src/queue/lease.rs", "pub fn acquire"),
    ("How long does a courier keep a job without a sign of life?", "src/queue/lease.rs", "LEASE_DURATION"),
    ("Where is the exponential backoff implemented?", "src/queue/retry.rs", "Exponential backoff"),
    ("how is it decided whether to give up after failed attempts", "src/queue/retry.rs", "giving up"),
    ("How are bearer tokens checked?", "api/server.ts", "bearer token"),
    ("what happens when a client sends too many requests, is there rate limiting", "api/limiter.ts", "bucket"),
    ("Where is a pickup booked?", "api/server.ts", "Books a pickup"),
    ("Which component draws the map with the parcel position?", "web/ParcelMap.tsx", "Draws the map"),
    ("How is an address turned into latitude and longitude?", "workers/geocode.py", "postal address"),
    ("what does extract_postcode do", "workers/geocode.py", "five digits"),
    ("How is the price of a parcel calculated with fuel surcharge?", "workers/pricing.py", "fuel surcharge"),
    ("weight class of heavy parcels", "workers/pricing.py", "Heavier parcels"),
    ("How is the distance between two positions computed?", "cmd/tracker/main.go", "great-circle"),
    ("estimate arrival of a van", "cmd/tracker/main.go", "minutes until a van"),
    ("Which table stores barcode scans?", "db/schema.sql", "create table scans"),
    ("How are old scans deleted?", "db/schema.sql", "Deletes scans"),
    ("purge_old_scans", "db/schema.sql", "purge_old_scans"),
    ("When are backups taken and how are they restored?", "docs/operations.md", "full backup"),
    ("what should I do when the depot offline alarm rings", "docs/operations.md", "Call the depot"),
    ("How do I onboard a new courier?", "docs/operations.md", "Print a badge"),
    ("How do I install it?", "README.md", "Install the toolchain"),
    ("What is the geofence radius?", "config/settings.toml", "geofence_radius"),
    ("how does the deployment wait until a depot is healthy", "scripts/deploy.sh", "wait_until_healthy"),
    ("what is in src/lib.rs", "src/lib.rs", "queue"),
];

/// Questions about things that the project does not have.
const UNANSWERED: [&str; 10] = [
    "How does the quantum flux capacitor get calibrated?",
    "How is kubernetes configured in this project?",
    "Where are emails sent to the customers via SMTP?",
    "What is the capital of Mongolia?",
    "How do I export the invoices to Kafka?",
    "Which machine learning model ranks the advertisements?",
    "what does frobnicate_widget do",
    "How does the blockchain consensus protocol elect a leader?",
    "who wrote the opera The Magic Flute",
    "How are websocket subscriptions multiplexed?",
];

async fn searcher(embedder: Option<Arc<dyn Embedder>>) -> (cogo_test_support::TestDatabase, Searcher) {
    let database = database().await;
    sync(&database.pool, TENANT, "parcels", &root(), |_| {}).await.unwrap();
    if let Some(embedder) = &embedder {
        let report = embed_pending(&database.pool, TENANT, "parcels", embedder.as_ref(), 1_000).await.unwrap();
        assert!(report.embedded > 40 && !report.more, "{report:?}");
    }
    let searcher = Searcher::new(database.pool.clone(), embedder);
    (database, searcher)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parcels")
}

async fn check_hits(embedder: Option<Arc<dyn Embedder>>) {
    let (_database, searcher) = searcher(embedder).await;
    let (mut first, mut among_three, mut missed) = (0, 0, Vec::new());
    for (question, path, _) in ANSWERED {
        let found = searcher.search(TENANT, Some("parcels"), question, 8).await.unwrap().passages;
        let place = found.iter().position(|passage| passage.path == path);
        first += usize::from(place == Some(0));
        among_three += usize::from(place.is_some_and(|place| place < 3));
        if place != Some(0) {
            missed.push(format!("{question} -> {place:?}, first {:?}", found.first().map(|passage| &passage.path)));
        }
    }
    assert!(among_three as f64 >= 0.95 * ANSWERED.len() as f64, "{missed:#?}");
    assert!(first as f64 >= 0.8 * ANSWERED.len() as f64, "{missed:#?}");
}

#[tokio::test]
async fn questions_find_their_file_by_words_alone() {
    check_hits(None).await;
}

#[tokio::test]
async fn questions_find_their_file_with_local_vectors() {
    check_hits(Some(Arc::new(HashEmbedder::default()))).await;
}

#[tokio::test]
async fn extracted_answers_quote_lines_that_stand_there() {
    let (_database, searcher) = searcher(Some(Arc::new(HashEmbedder::default()))).await;
    let mut wrong = Vec::new();
    for (question, path, words) in ANSWERED {
        let retrieved = searcher.search(TENANT, None, question, 8).await.unwrap();
        let Extract::Evidence { text, citations } = extract(&retrieved) else {
            wrong.push(format!("{question}: no evidence"));
            continue;
        };
        assert!((1..=5).contains(&citations.len()), "{question}");
        for citation in &citations {
            let file = fs::read_to_string(root().join(&citation.path)).unwrap();
            assert!(citation.holds_in(&file), "{question}: {}", citation.reference());
            assert!(text.contains(&citation.quote) && text.contains(&citation.reference()), "{question}");
        }
        if !citations.iter().any(|citation| citation.path == path && citation.quote.contains(words)) {
            wrong.push(format!("{question}: {text}"));
        }
    }
    println!("{} wrong: {wrong:#?}", wrong.len());
    assert!(wrong.len() as f64 <= 0.1 * ANSWERED.len() as f64, "{wrong:#?}");
}

#[tokio::test]
async fn question_about_something_else_gets_no_evidence() {
    let (_database, searcher) = searcher(Some(Arc::new(HashEmbedder::default()))).await;
    let mut invented = Vec::new();
    for question in UNANSWERED {
        let retrieved = searcher.search(TENANT, None, question, 8).await.unwrap();
        match extract(&retrieved) {
            Extract::NoEvidence { nearest, .. } => assert!(nearest.len() <= 3),
            Extract::Evidence { text, .. } => invented.push(format!("{question}: {text}")),
        }
    }
    println!("{} invented: {invented:#?}", invented.len());
    assert!(invented.is_empty(), "{invented:#?}");
}
