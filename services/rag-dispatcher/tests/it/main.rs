//! The process on a real database: it sends on what changed, nothing twice, and forgets what is gone.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::{fs, path::Path, time::Duration};

use cogo_bus_core::Bus;
use cogo_contracts::{IndexReply, IndexRequest, MessageStatus, NewMessage, Task, Tenant, routes};
use cogo_rag_core::{WalkLimits, index_files};
use serde_json::{Value, json};
use tokio::process::Command;

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);
const TENANT: &str = "acme";

/// Sends the message and waits until its own step has ended; what it sent on is not worked on here.
async fn index(bus: &Bus, root: &Path) -> Task {
    let request = IndexRequest { collection: "repo".to_owned(), root: root.to_str().unwrap().to_owned() };
    let payload = serde_json::to_value(request).unwrap();
    let message = NewMessage::new(routes::INDEX, Some(Tenant::new(TENANT).unwrap()), payload);
    let id = bus.enqueue(&message).await.unwrap().id;
    tokio::time::timeout(PATIENCE, async {
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        loop {
            turn.tick().await;
            let task = bus.task(id).await.unwrap().unwrap();
            if task.steps[0].done_at.is_some() {
                return task;
            }
        }
    })
    .await
    .expect("the process does its work in time")
}

async fn payload(bus: &Bus, task: &Task, step: usize) -> Value {
    bus.message(task.steps[step].id).await.unwrap().unwrap()["payload"].clone()
}

async fn reply(bus: &Bus, task: &Task) -> IndexReply {
    let message = bus.message(task.steps[0].id).await.unwrap().unwrap();
    serde_json::from_value(message["result"].clone()).unwrap()
}

#[tokio::test]
async fn changed_files_are_sent_on_and_gone_ones_forgotten() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let directory = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(directory.path()).unwrap();
    fs::write(root.join("a.rs"), "fn a() {}\n").unwrap();
    fs::write(root.join("b.md"), "# B\n\ntext\n").unwrap();
    fs::write(root.join("c.bin"), b"\0").unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_cogo-rag-dispatcher"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .env("COGO_ALLOWED_ROOTS", &root)
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let first = index(&bus, &root).await;
    let routes: Vec<(&str, &str)> =
        first.steps.iter().map(|step| (step.service.as_str(), step.role.as_str())).collect();
    assert_eq!(routes, [("rag", "index"), ("rag", "embed"), ("kg", "build")]);
    let root_text = root.to_str().unwrap();
    let embed = json!({"collection": "repo", "root": root_text, "paths": ["a.rs", "b.md"]});
    assert_eq!(payload(&bus, &first, 1).await, embed);
    assert_eq!(payload(&bus, &first, 2).await, json!({"repo": "repo", "root": root_text}));
    let expected = IndexReply { files: 2, changed: 2, removed: 0, skipped: 1, batches: 2 };
    assert_eq!(reply(&bus, &first).await, expected);

    let paths = ["a.rs", "b.md"].map(str::to_owned);
    index_files(&database.pool, TENANT, "repo", &root, &paths, WalkLimits::default()).await.unwrap();
    fs::remove_file(root.join("b.md")).unwrap();
    let second = index(&bus, &root).await;
    let expected = IndexReply { files: 1, changed: 0, removed: 1, skipped: 1, batches: 2 };
    assert_eq!(reply(&bus, &second).await, expected);
    assert_eq!(payload(&bus, &second, 1).await["paths"], json!([]));
    let indexed: Vec<String> =
        sqlx::query_scalar("select path from public.rag_sources").fetch_all(&database.pool).await.unwrap();
    assert_eq!(indexed, ["a.rs"]);

    let outside = tempfile::tempdir().unwrap();
    let refused = index(&bus, outside.path()).await;
    assert_eq!((refused.steps.len(), refused.steps[0].status), (1, MessageStatus::Failed), "{refused:?}");
    drop(process);
}
