//! A question travels through the agents and comes back answered, with lines that say what is claimed.

use std::path::Path;

use cogo_e2e::Fleet;
use serde_json::Value;

const QUESTION: &str = "What happens to a message when its lease expires?";

/// This repository, the tree that the tests ask about.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap()
}

/// Each citation's lines stand in the file, and say what the citation says.
fn check_citations(answer: &Value) {
    let citations = answer["citations"].as_array().unwrap();
    assert!(!citations.is_empty(), "{answer}");
    for citation in citations {
        let path = repository().join(citation["path"].as_str().unwrap());
        let file = std::fs::read_to_string(&path).unwrap();
        let (start, end) = (citation["start"].as_u64().unwrap() as usize, citation["end"].as_u64().unwrap() as usize);
        let lines: Vec<&str> = file.lines().skip(start - 1).take(end + 1 - start).collect();
        assert_eq!(lines.join("\n").trim_end(), citation["text"].as_str().unwrap().trim_end(), "{citation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn question_is_answered_from_the_indexed_tree_and_again_after_a_restart() {
    let fleet = Fleet::start().unwrap();
    let tree = repository().to_str().unwrap();
    fleet.cogo(&["index", tree, "--collection", "cogo", "--json"]).unwrap().ok().unwrap();

    let answer = fleet.ask(QUESTION).await.unwrap();
    check_citations(&answer);
    assert_eq!(answer["mode"], "extractive");

    let structural = fleet.ask("Who imports crates/bus-core/src/claim.rs?").await.unwrap();
    assert_eq!(structural["mode"], "graph", "{structural}");
    check_citations(&structural);

    let nothing = fleet.ask("How do I prepare a sourdough croissant with zebra butter?").await.unwrap();
    assert_eq!((&nothing["mode"], nothing["citations"].as_array().unwrap().len()), (&Value::from("abstain"), 0));

    let knowledge = "select (select count(*) from public.rag_sources) + (select count(*) from public.kg_files)";
    let pool = fleet.pool().unwrap();
    let before: i64 = sqlx::query_scalar(knowledge).fetch_one(&pool).await.unwrap();
    assert!(before > 100);

    let tables = "select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables
                   where relname ~ '^(rag_|kg_|vector_|code_|embedding_)'";
    let settle = "select pg_stat_force_next_flush()";
    let _ = sqlx::query(settle).execute(&pool).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let written: i64 = sqlx::query_scalar(tables).fetch_one(&pool).await.unwrap();
    fleet.cogo(&["index", tree, "--collection", "cogo", "--json"]).unwrap().ok().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let rewritten: i64 = sqlx::query_scalar(tables).fetch_one(&pool).await.unwrap();
    assert_eq!(rewritten - written, 0, "indexing an unchanged tree writes no rows");
    pool.close().await;

    fleet.cogo(&["down"]).unwrap().ok().unwrap();
    fleet.up().unwrap();
    check_citations(&fleet.ask(QUESTION).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_show_what_happened() {
    let fleet = Fleet::start().unwrap();
    let sent = fleet.cogo(&["send", "sandbox", "nobody", "--data", "{}", "--json"]).unwrap().ok().unwrap();
    assert!(sent.json().unwrap()["id"].is_string());

    let question = fleet.ask("What is this?").await.unwrap();
    assert_eq!(question["mode"], "abstain", "nothing is indexed: {question}");

    let id = fleet.submit("ask", serde_json::json!({"question": ""})).await.unwrap();
    assert_eq!(fleet.result(&id).await.unwrap()["status"], "failed");
    let trace = fleet.cogo(&["trace", &id]).unwrap().ok().unwrap();
    for step in ["orchestrator/decide", "executor/dispatch", "gateway/chat"] {
        assert!(trace.stdout.contains(step), "{}", trace.stdout);
    }
    let dead = fleet.cogo(&["dlq", "ls", "--json"]).unwrap().ok().unwrap();
    assert!(dead.stdout.contains("gateway"), "{}", dead.stdout);
    let agents = fleet.cogo(&["agents", "--json"]).unwrap().ok().unwrap();
    assert!(agents.stdout.contains("executor-dispatcher"));
    fleet.cogo(&["status"]).unwrap().ok().unwrap();
    fleet.cogo(&["doctor"]).unwrap().ok().unwrap();
    assert_eq!(fleet.cogo(&["trace", &uuid::Uuid::now_v7().to_string()]).unwrap().code, Some(3));

    let summary: Value =
        fleet.http().get(fleet.url(3100, "/api/metrics/summary")).send().await.unwrap().json().await.unwrap();
    let pool = fleet.pool().unwrap();
    let done: i64 = sqlx::query_scalar("select count(*) from public.agent_messages where status = 'done'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(summary["bus"]["byStatus"]["done"], done);
    let kinds: Vec<String> =
        sqlx::query_scalar("select distinct kind from public.bus_events").fetch_all(&pool).await.unwrap();
    for kind in ["orchestrate_enqueued", "execute_enqueued", "execute_done", "execute_failed"] {
        assert!(kinds.iter().any(|known| known == kind), "{kind} is missing: {kinds:?}");
    }
    let page = fleet.http().get(fleet.url(3100, "/dashboard/local")).send().await.unwrap();
    assert_eq!(page.status(), 200);
}
