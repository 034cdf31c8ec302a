//! A question travels through the agents and comes back answered, with lines that say what is claimed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use cogo_e2e::Fleet;
use serde_json::Value;
use sqlx::PgPool;

const QUESTION: &str = "What happens to a message when its lease expires?";

/// What git knows of this repository, copied so that nobody edits it meanwhile.
fn copy_of_this_repository(to: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap();
    let tree = to.join("tree");
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(repository).output().unwrap();
    for name in String::from_utf8(listed.stdout).unwrap().split('\0').filter(|name| !name.is_empty()) {
        let Ok(content) = std::fs::read(repository.join(name)) else { continue };
        std::fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
        std::fs::write(tree.join(name), content).unwrap();
    }
    tree
}

/// What of the knowledge tables would differ if any row of them had been written: newest transaction and rows.
async fn state_of_knowledge(pool: &PgPool) -> Vec<(String, i64, i64)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
          where relkind = 'r' and relnamespace = 'public'::regnamespace and relname ~ '^(rag_|kg_|vector_|code_|embedding_)'
          order by relname",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(tables.len() >= 8, "{tables:?}");
    let mut state = Vec::new();
    for table in tables {
        let statement = format!("select '{table}', coalesce(max(xmin::text::bigint), 0), count(*) from public.{table}");
        state.push(sqlx::query_as(sqlx::AssertSqlSafe(statement)).fetch_one(pool).await.unwrap());
    }
    state
}

/// Each citation's lines stand in the file, and say what the citation says.
fn check_citations(tree: &Path, answer: &Value) {
    let citations = answer["citations"].as_array().unwrap();
    assert!(!citations.is_empty(), "{answer}");
    for citation in citations {
        let path = tree.join(citation["path"].as_str().unwrap());
        let file = std::fs::read_to_string(&path).unwrap();
        let (start, end) = (citation["start"].as_u64().unwrap() as usize, citation["end"].as_u64().unwrap() as usize);
        let lines: Vec<&str> = file.lines().skip(start - 1).take(end + 1 - start).collect();
        assert_eq!(lines.join("\n").trim_end(), citation["text"].as_str().unwrap().trim_end(), "{citation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn question_is_answered_from_the_indexed_tree_and_again_after_a_restart() {
    let fleet = Fleet::start().unwrap();
    let root = copy_of_this_repository(fleet.files());
    let tree = root.to_str().unwrap();
    fleet.cogo(&["index", tree, "--collection", "cogo", "--json"]).unwrap().ok().unwrap();

    let answer = fleet.ask(QUESTION).await.unwrap();
    check_citations(&root, &answer);
    assert_eq!(answer["mode"], "extractive");

    let structural = fleet.ask("Who imports crates/bus-core/src/claim.rs?").await.unwrap();
    assert_eq!(structural["mode"], "graph", "{structural}");
    check_citations(&root, &structural);

    let nothing = fleet.ask("How do I prepare a sourdough croissant with zebra butter?").await.unwrap();
    assert_eq!((&nothing["mode"], nothing["citations"].as_array().unwrap().len()), (&Value::from("abstain"), 0));

    let knowledge = "select (select count(*) from public.rag_sources) + (select count(*) from public.kg_files)";
    let pool = fleet.pool().unwrap();
    let before: i64 = sqlx::query_scalar(knowledge).fetch_one(&pool).await.unwrap();
    assert!(before > 100);

    let state = state_of_knowledge(&pool).await;
    fleet.cogo(&["index", tree, "--collection", "cogo", "--json"]).unwrap().ok().unwrap();
    assert_eq!(state_of_knowledge(&pool).await, state, "indexing an unchanged tree writes no rows");
    pool.close().await;

    fleet.cogo(&["down"]).unwrap().ok().unwrap();
    fleet.up().unwrap();
    check_citations(&root, &fleet.ask(QUESTION).await.unwrap());
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
