//! What comes first: what says it, before what repeats the question, tests it or merely uses its words.

use cogo_rag_core::{Citation, Extract, Retrieved, Searcher, extract};
use cogo_test_support::database;

use crate::support::{TENANT, Tree};

const QUESTION: &str = "What happens to a message when its lease expires?";

/// Says it once, where the list below repeats it.
const LEASE: (&str, &str) = (
    "src/lease.rs",
    "/// Once a lease expires, takes the message from whoever holds it and queues it again.\npub fn take_back(message: &mut Message) {\n    message.queue();\n}\n",
);

const LIST: &str = "const ASKED: [&str; 3] = [\n    \"What happens to a message when its lease expires?\",\n    \"what happens when the lease of a message expires?\",\n    \"Who holds the lease of a message?\",\n];\n";

async fn ask(files: &[(&str, &str)], question: &str) -> Retrieved {
    let database = database().await;
    Tree::new(files).sync(&database.pool, "repo").await;
    Searcher::new(database.pool.clone(), None).search(TENANT, Some("repo"), question, 5).await.unwrap()
}

/// The order of the files, each once.
fn paths(retrieved: &Retrieved) -> Vec<&str> {
    let mut paths: Vec<&str> = Vec::new();
    for passage in &retrieved.passages {
        if !paths.contains(&passage.path.as_str()) {
            paths.push(&passage.path);
        }
    }
    paths
}

fn quotes(retrieved: &Retrieved) -> Vec<Citation> {
    match extract(retrieved) {
        Extract::Evidence { citations, .. } => citations,
        Extract::NoEvidence { .. } => Vec::new(),
    }
}

#[tokio::test]
async fn list_of_questions_comes_after_what_answers_them_and_is_not_quoted() {
    let answer = (
        "src/lease.rs",
        "/// Takes a message from a holder whose lease has run out and puts it back where any other may find it.\npub fn take_back(holder: &str) {\n    find(holder).put_back();\n}\n",
    );
    let notes = ("notes.txt", "What happens to a message when its lease expires?\tsrc/lease.rs\n");
    let mut files = vec![answer, ("src/asked.rs", LIST), notes];
    let others = ["a.rs", "b.rs", "c.rs", "d.rs", "e.rs", "f.rs", "g.rs", "h.rs"];
    files.extend(others.map(|path| (path, "fn something_else() {}\n")));
    let retrieved = ask(&files, QUESTION).await;
    assert_eq!(paths(&retrieved)[0], "src/lease.rs", "{retrieved:#?}");
    let quotes = quotes(&retrieved);
    assert!(!quotes.is_empty());
    assert!(quotes.iter().all(|quote| quote.path == "src/lease.rs"), "{quotes:#?}");
}

#[tokio::test]
async fn question_that_is_only_repeated_has_no_answer() {
    let retrieved = ask(&[("src/asked.rs", LIST), ("src/other.rs", "fn other() {}\n")], QUESTION).await;
    let Extract::NoEvidence { nearest, .. } = extract(&retrieved) else { panic!("{retrieved:#?}") };
    assert!(nearest.iter().all(|hint| !hint.quote.contains(QUESTION)), "{nearest:#?}");
}

#[tokio::test]
async fn heading_that_is_the_question_leads_to_the_text_below_it() {
    let faq = "# Questions\n\n## What happens to a message when its lease expires?\n\nAnybody may take it then, and the former holder's word counts no longer.\n\n## What else?\n\nNothing.\n";
    let retrieved = ask(&[LEASE, ("docs/faq.md", faq), ("src/asked.rs", LIST)], QUESTION).await;
    assert_eq!(paths(&retrieved)[0], "docs/faq.md", "{retrieved:#?}");
    let quotes = quotes(&retrieved);
    assert_eq!(quotes[0].path, "docs/faq.md");
    assert!(quotes[0].quote.contains("Anybody may take it then"), "{quotes:#?}");
}

#[tokio::test]
async fn tests_come_after_the_code_unless_they_are_asked_for() {
    let code = "/// Refills the bucket of a client.\npub fn refill(bucket: &mut Bucket) {\n    bucket.level += 1;\n}\n";
    let test = "/// Refills the bucket of a client, bucket after bucket.\nfn refill_bucket(bucket: &mut Bucket) {\n    bucket.refill(client);\n}\n";
    for place in
        ["tests/it/limits.rs", "src/limits_test.rs", "benches/limits.rs", "examples/limits.rs", "fixtures/a.rs"]
    {
        let files = [("src/limits.rs", code), (place, test)];
        assert_eq!(
            paths(&ask(&files, "Where is the bucket of a client refilled?").await)[0],
            "src/limits.rs",
            "{place}"
        );
        let meant = ask(&files, "Which test refills the bucket of a client?").await;
        assert_eq!(paths(&meant)[0], place);
        let named = ask(&files, &format!("Where does {place} refill the bucket of a client?")).await;
        assert_eq!(paths(&named)[0], place);
    }
}

#[tokio::test]
async fn sql_function_is_found_and_quoted_by_the_comment_on_it() {
    let schema = "create function a.reclaim(max_rows integer) returns integer\nlanguage plpgsql as $$\ndeclare\n  m a.messages;\nbegin\n  for m in select * from a.messages t where t.lease_until <= now() limit max_rows\n  loop\n    perform a.settle(m);\n\n  end loop;\nend\n$$;\n\ncomment on function a.reclaim(integer)\n  is 'Queues messages again whose lease has expired; safe to run twice.';\n\ncreate function a.other() returns integer language sql as $$ select 1 $$;\n";
    let user = "fn keep(message: u8, lease: u8) {\n    lease(message, lease);\n    message(lease);\n}\n";
    let files = [("schema.sql", schema), ("src/user.rs", user)];
    let retrieved = ask(&files, QUESTION).await;
    let first = &retrieved.passages[0];
    assert_eq!((first.path.as_str(), first.symbol.as_deref()), ("schema.sql", Some("a.reclaim")), "{retrieved:#?}");
    assert_eq!((first.start_line, first.end_line), (1, 15));
    let quote = &quotes(&retrieved)[0];
    assert_eq!((quote.start_line, quote.end_line), (14, 15), "{quote:#?}");
}

#[tokio::test]
async fn sentences_come_before_bare_code_with_the_same_words() {
    let told = "// The courier delivers the parcel.\nfn a() {}\n";
    let bare = "fn a() {\n    the(courier, delivers, parcel);\n}\n";
    for files in [[("a.rs", told), ("b.rs", bare)], [("b.rs", told), ("a.rs", bare)]] {
        let retrieved = ask(&files, "What does the courier deliver as a parcel?").await;
        assert_eq!(paths(&retrieved)[0], files[0].0, "{retrieved:#?}");
    }
}
