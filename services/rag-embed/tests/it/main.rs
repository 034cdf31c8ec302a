//! The process on a real database: what is sent is indexed and embedded once, leftovers are finished, the rest refused.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::Bus;
use cogo_contracts::{EmbedReply, EmbedRequest, NewMessage, Task, TaskStatus, Tenant, routes};
use cogo_rag_core::collections;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    task::JoinSet,
};
use uuid::Uuid;

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);
const TENANT: &str = "acme";

fn start(url: &str, root: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_cogo-rag-embed"))
        .env("DATABASE_URL", url)
        .env("COGO_PORT", "0")
        .env("COGO_ALLOWED_ROOTS", root)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn send(bus: &Bus, root: &Path, paths: &[&str]) -> Uuid {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let request = EmbedRequest { collection: "repo".to_owned(), root: root.to_str().unwrap().to_owned(), paths };
    let payload = serde_json::to_value(request).unwrap();
    bus.enqueue(&NewMessage::new(routes::EMBED, Some(Tenant::new(TENANT).unwrap()), payload)).await.unwrap().id
}

/// Asks again and again until the task has ended.
async fn settled(bus: &Bus, id: Uuid) -> Task {
    tokio::time::timeout(PATIENCE, async {
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        loop {
            turn.tick().await;
            let task = bus.task(id).await.unwrap().unwrap();
            if task.status.is_terminal() {
                return task;
            }
        }
    })
    .await
    .expect("the process does its work in time")
}

async fn reply(bus: &Bus, id: Uuid) -> EmbedReply {
    let task = settled(bus, id).await;
    assert_eq!(task.status, TaskStatus::Done, "{:?}", task.error);
    serde_json::from_value(task.result.unwrap()).unwrap()
}

#[tokio::test]
async fn files_are_indexed_and_each_vector_is_made_once() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let directory = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(directory.path()).unwrap();
    let names: Vec<String> = (0..12).map(|number| format!("f{number}.rs")).collect();
    for (number, name) in names.iter().enumerate() {
        fs::write(root.join(name), format!("fn a{number}() {{}}\n\nfn b{number}() {{}}\n")).unwrap();
    }
    // All wait before the process starts, so that it works on them at once.
    let paths: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut ids = Vec::new();
    for batch in paths.chunks(2) {
        ids.push(send(&bus, &root, batch).await);
    }
    let process = start(&database.url, &root);
    let mut replies = Vec::new();
    for id in ids {
        replies.push(reply(&bus, id).await);
    }
    assert!(replies.iter().all(|reply| (reply.files, reply.chunks, reply.embedded) == (2, 4, 4)), "{replies:#?}");
    assert!(replies[0].degraded && replies[0].embedder.starts_with("local-hash/"), "{replies:#?}");

    let id = send(&bus, &root, &paths[..2]).await;
    let again = reply(&bus, id).await;
    assert_eq!((again.files, again.chunks, again.embedded), (0, 0, 0), "a second delivery finds nothing to do");

    let lost = "with lost as (update public.code_vectors set embedding = null, embedder = null where symbol ~ '^a'
                               returning text_sha256)
                delete from public.embedding_cache where text_sha256 in (select text_sha256 from lost)";
    sqlx::query(lost).execute(&database.pool).await.unwrap();
    let id = send(&bus, &root, &[paths[0]]).await;
    assert_eq!(reply(&bus, id).await.embedded, 1, "a message embeds what its own files have");
    let id = send(&bus, &root, &[]).await;
    assert_eq!(reply(&bus, id).await.embedded, 11, "the one without files finishes the rest");
    assert_eq!(collections(&database.pool, TENANT).await.unwrap()[0].embedded, 24);

    let outside = tempfile::tempdir().unwrap();
    let id = send(&bus, outside.path(), &["x.rs"]).await;
    let refused = settled(&bus, id).await;
    assert_eq!((refused.status, refused.steps[0].attempts), (TaskStatus::Failed, 1), "{refused:?}");
    drop(process);
}

#[tokio::test]
async fn files_are_searchable_while_the_model_is_away() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    fs::write(root.join("a.rs"), "fn lonely() {}\n").unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_cogo-rag-embed"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .env("COGO_ALLOWED_ROOTS", &root)
        // nobody listens on the discard port
        .env("COGO_MODEL_BASE_URL", "http://127.0.0.1:9/v1")
        .env("COGO_MODEL_EMBEDDING", "some-model")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let id = send(&bus, &root, &["a.rs"]).await;
    let step = tokio::time::timeout(PATIENCE, async {
        loop {
            let task = bus.task(id).await.unwrap().unwrap();
            if task.steps[0].error.is_some() {
                return task.steps.into_iter().next().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the attempt ends");
    assert!(step.error.unwrap().contains("Embedding provider is not available"));
    assert!(step.retry_at.is_some() || step.attempts > 1, "it is tried again");
    let indexed = collections(&database.pool, TENANT).await.unwrap();
    assert_eq!((indexed[0].chunks, indexed[0].embedded), (1, 0));
    drop(process);
}

#[tokio::test]
async fn model_that_fails_again_and_again_is_not_called_for_the_next_message() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    fs::write(root.join("a.rs"), "fn lonely() {}\n").unwrap();
    // it takes every call and hangs up
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let mut provider = JoinSet::new();
    provider.spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let process = Command::new(env!("CARGO_BIN_EXE_cogo-rag-embed"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .env("COGO_ALLOWED_ROOTS", &root)
        .env("COGO_MODEL_BASE_URL", format!("http://{address}/v1"))
        .env("COGO_MODEL_EMBEDDING", "some-model")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for _ in 0..6 {
        send(&bus, &root, &["a.rs"]).await;
    }
    let opened: (String, String) = tokio::time::timeout(PATIENCE, async {
        loop {
            let event = "select kind, detail ->> 'breaker' from public.bus_events where kind = 'breaker_opened'";
            if let Some(event) = sqlx::query_as(event).fetch_optional(&database.pool).await.unwrap() {
                return event;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the circuit opens, and it is told");
    assert_eq!(opened.1, format!("embedding model some-model at http://{address}"));
    let before = calls.load(Ordering::SeqCst);
    let id = send(&bus, &root, &["a.rs"]).await;
    let step = tokio::time::timeout(PATIENCE, async {
        loop {
            let step = bus.task(id).await.unwrap().unwrap().steps.remove(0);
            // should it be the one trial of the half-open circuit, its next attempt is not
            if step.error.as_ref().is_some_and(|error| error.contains("Circuit is open")) {
                return step;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the model is not called for this one");
    assert!(step.retry_at.is_some() || step.attempts > 1, "it is tried again");
    // two trials may have been let through meanwhile, with their repeats
    assert!(calls.load(Ordering::SeqCst) - before <= 6, "{before} {calls:?}");
    drop(process);
    provider.abort_all();
}
