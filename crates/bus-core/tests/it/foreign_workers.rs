//! The example workers in Python and TypeScript beside one in Rust: killed, frozen, stopped, and nothing done twice.

use std::{
    path::{Path, PathBuf},
    process::{Command as Probe, Stdio},
    time::Duration,
};

use cogo_bus_core::{Bus, Claimed, Completion, Failure, PartialPlace};
use cogo_contracts::NewMessage;
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::support::{LEASE, bus, claim, claim_for, claim_one, message};

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
/// A lease that no test outlives, for those in which something else must free a message.
const LONG_LEASE_MS: u32 = 600_000;
const SHORT_LEASE_MS: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    TypeScript,
}

impl Language {
    const ALL: [Self; 2] = [Self::Python, Self::TypeScript];

    fn instance(self) -> &'static str {
        match self {
            Self::Python => "python/0",
            Self::TypeScript => "typescript/0",
        }
    }

    fn start(self, database: &TestDatabase, lease_ms: u32, slots: u32) -> Child {
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new(python());
                command.arg("worker.py");
                command
            }
            Self::TypeScript => {
                expect_node_packages();
                let mut command = Command::new("node");
                command.args(["--import", "tsx", "worker.ts"]);
                command
            }
        };
        command.current_dir(examples()).kill_on_drop(true).env("DATABASE_URL", &database.url);
        command.envs([("AGENT_SERVICE", "test"), ("AGENT_ROLE", "work"), ("HOLDER_ID", self.instance())]);
        command.envs([("BUS_POLL_MS", "500"), ("GRACE_MS", "0")]);
        command.env("LEASE_MS", lease_ms.to_string()).env("CONCURRENCY", slots.to_string());
        command.spawn().unwrap()
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/workers")
}

/// The first Python that has psycopg 3.
fn python() -> &'static str {
    let has_psycopg = |python: &&str| {
        let probe = Probe::new(python).args(["-c", "import psycopg"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has_psycopg).expect(
        "the Python worker needs python3 with psycopg 3: apt-get install python3-psycopg, or pip install 'psycopg[binary]'",
    )
}

fn expect_node_packages() {
    let node = Probe::new("node").arg("--version").stdout(Stdio::null()).status();
    assert!(
        node.is_ok_and(|status| status.success()),
        "the TypeScript worker needs Node.js 20 or later: apt-get install nodejs npm"
    );
    let packages = examples().join("node_modules/tsx").is_dir() && examples().join("node_modules/postgres").is_dir();
    assert!(packages, "the TypeScript worker needs its packages: npm ci --ignore-scripts in examples/workers");
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Probe::new("kill").args([name, &pid]).status().unwrap().success());
}

fn order(payload: Value) -> NewMessage {
    let mut order = message(payload);
    // stamped, so that each end leaves an audit row
    order.payload["__assignment"] = json!({});
    order
}

fn order_for(language: Language, payload: Value) -> NewMessage {
    let mut order = order(payload);
    order.target_instance = Some(language.instance().to_owned());
    order
}

/// Waits until a worker shows that it has begun, and answers its name.
async fn begun(bus: &Bus, id: Uuid) -> String {
    timeout(PATIENCE, async {
        loop {
            if let Some(part) = bus.partials_after(id, PartialPlace::default(), 1).await.unwrap().first() {
                return part.content["holder"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("no worker begins")
}

async fn ended(bus: &Bus, id: Uuid) -> Value {
    timeout(PATIENCE, async {
        loop {
            let row = bus.message(id).await.unwrap().unwrap();
            if !row["done_at"].is_null() {
                return row;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("the message does not end")
}

async fn count(bus: &Bus, condition: &str) -> i64 {
    let query = format!("select count(*) from public.agent_messages where {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(bus.pool()).await.unwrap()
}

async fn events(bus: &Bus, id: Uuid, kind: &str) -> usize {
    let kinds: Vec<String> = sqlx::query_scalar("select kind from public.bus_events where message_id = $1")
        .bind(id)
        .fetch_all(bus.pool())
        .await
        .unwrap();
    kinds.iter().filter(|found| *found == kind).count()
}

/// What the examples do, in Rust.
async fn obey(bus: &Bus, claimed: &Claimed, holder: &str) {
    let fence = claimed.fence();
    bus.emit(&fence, holder, 1, &[json!({"holder": holder}).to_string()], LEASE).await.unwrap();
    let order = claimed.payload["attempts"][claimed.attempt.to_string()].as_str();
    if let Some("reject" | "retry") = order {
        let retriable = order == Some("retry");
        let failure = Failure { reason: "as ordered".to_owned(), retriable, retry_after: None };
        bus.fail(&fence, holder, &failure).await.unwrap().unwrap();
        return;
    }
    let follow_ups = claimed.payload["follow_ups"].as_array().into_iter().flatten();
    let follow_ups =
        follow_ups.map(|next| NewMessage::new(crate::support::ROUTE, None, next["payload"].clone())).collect();
    let completion = Completion { result: Some(json!({"holder": holder})), follow_ups, ..Completion::default() };
    assert!(bus.complete(&fence, holder, &completion).await.unwrap());
}

async fn rust_worker(bus: Bus, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let claimed = claim_for(&bus, "rust/0#1", 2, LEASE).await;
        for message in &claimed {
            obey(&bus, message, "rust/0#1").await;
        }
        if claimed.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What was sent, by what each message should come to.
struct Sent {
    hanging: Vec<(Language, Uuid)>,
    targeted: Vec<(Language, Uuid)>,
    plain: Vec<Uuid>,
    retried: Vec<Uuid>,
    rejected: Vec<Uuid>,
    parents: Vec<Uuid>,
}

impl Sent {
    async fn all(bus: &Bus, hanging: Vec<(Language, Uuid)>) -> Self {
        let send = async |message: NewMessage| bus.enqueue(&message).await.unwrap().id;
        let mut sent = Self {
            hanging,
            targeted: Vec::new(),
            plain: Vec::new(),
            retried: Vec::new(),
            rejected: Vec::new(),
            parents: Vec::new(),
        };
        let child = json!({"service": "test", "role": "work", "payload": {"__assignment": {}, "child": true}});
        for _ in 0..20 {
            sent.plain.push(send(order(json!({"work_ms": 10}))).await);
            sent.retried.push(send(order(json!({"attempts": {"1": "retry"}}))).await);
            // whichever attempt outlives its worker
            let always = json!({"1": "reject", "2": "reject", "3": "reject"});
            sent.rejected.push(send(order(json!({"attempts": always}))).await);
            sent.parents.push(send(order(json!({"follow_ups": [child]}))).await);
        }
        for language in Language::ALL {
            for _ in 0..5 {
                sent.targeted.push((language, send(order_for(language, json!({"work_ms": 5}))).await));
            }
        }
        sent
    }

    async fn check(&self, bus: &Bus) {
        let mut done: Vec<Uuid> = [&self.plain[..], &self.retried, &self.parents].concat();
        done.extend(self.hanging.iter().chain(&self.targeted).map(|(_, id)| *id));
        for id in done {
            let row = ended(bus, id).await;
            assert_eq!((row["status"].as_str(), events(bus, id, "execute_done").await), (Some("done"), 1), "{row}");
        }
        for &id in &self.retried {
            let row = ended(bus, id).await;
            assert!(row["attempts"].as_i64() >= Some(2) && events(bus, id, "execute_retry").await >= 1, "{row}");
        }
        for &id in &self.rejected {
            let row = ended(bus, id).await;
            assert_eq!((row["status"].as_str(), events(bus, id, "execute_failed").await), (Some("failed"), 1), "{row}");
            assert!(row["error"].as_str().unwrap().contains("as ordered"), "{row}");
        }
        for &parent in &self.parents {
            let task = bus.task(parent).await.unwrap().unwrap();
            assert_eq!(task.steps.len(), 2, "one follow-up each: {task:?}");
            assert_eq!(events(bus, task.steps[1].id, "execute_done").await, 1);
        }
        for &(language, id) in &self.targeted {
            assert!(ended(bus, id).await["result"]["holder"].as_str().unwrap().starts_with(language.instance()));
        }
        let expected = self.plain.len() + self.retried.len() + self.rejected.len() + 2 * self.parents.len();
        let all = expected + self.hanging.len() + self.targeted.len();
        assert_eq!(count(bus, "true").await, i64::try_from(all).unwrap());
    }
}

#[tokio::test]
async fn workers_in_three_languages_share_a_queue_and_two_killed_ones_cost_nothing() {
    let (bus, database) = bus().await;
    let mut hanging = Vec::new();
    for language in Language::ALL {
        let id = bus.enqueue(&order_for(language, json!({"attempts": {"1": "hang"}}))).await.unwrap().id;
        hanging.push((language, id));
    }
    let mut workers = Language::ALL.map(|language| language.start(&database, SHORT_LEASE_MS, 4));
    let mut victims = Vec::new();
    for &(_, id) in &hanging {
        victims.push(begun(&bus, id).await);
    }
    let sent = Sent::all(&bus, hanging).await;
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let in_rust = tracker.spawn(rust_worker(bus.clone(), stop.clone()));
    timeout(PATIENCE, async { while count(&bus, "status = 'done'").await < 10 {} }).await.unwrap();
    for worker in &mut workers {
        worker.kill().await.unwrap();
    }
    let mut successors = Language::ALL.map(|language| language.start(&database, SHORT_LEASE_MS, 4));
    timeout(PATIENCE, async {
        while count(&bus, "done_at is null").await > 0 {
            bus.reclaim(100).await.unwrap();
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("the queue does not drain");
    sent.check(&bus).await;
    for ((language, id), victim) in sent.hanging.iter().zip(&victims) {
        let row = ended(&bus, *id).await;
        let winner = row["result"]["holder"].as_str().unwrap();
        assert!(winner.starts_with(language.instance()) && winner != victim, "{winner} after {victim}");
        assert_eq!(row["attempts"], 2);
    }
    stop.cancel();
    in_rust.await.unwrap();
    for successor in &mut successors {
        signal(successor, "-TERM");
        assert!(timeout(PATIENCE, successor.wait()).await.unwrap().unwrap().success());
    }
}

#[tokio::test]
async fn foreign_worker_hands_back_at_sigterm_what_it_cannot_finish() {
    for language in Language::ALL {
        let (bus, database) = bus().await;
        let id = bus.enqueue(&order(json!({"attempts": {"1": "hang"}}))).await.unwrap().id;
        let mut worker = language.start(&database, LONG_LEASE_MS, 4);
        begun(&bus, id).await;
        signal(&worker, "-TERM");
        assert!(timeout(PATIENCE, worker.wait()).await.unwrap().unwrap().success());
        let handed_back = claim_one(&bus, "w").await;
        assert_eq!((handed_back.id, handed_back.attempt), (id, 2), "free at once, long before its lease");
        assert_eq!(ended_after(&bus, &handed_back).await["released"], 1);
    }
}

async fn ended_after(bus: &Bus, claimed: &Claimed) -> Value {
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    ended(bus, claimed.id).await
}

#[tokio::test]
async fn foreign_worker_that_slept_past_its_lease_changes_nothing() {
    for language in Language::ALL {
        let (bus, database) = bus().await;
        let id = bus.enqueue(&order(json!({"work_ms": 700}))).await.unwrap().id;
        let worker = language.start(&database, SHORT_LEASE_MS, 4);
        begun(&bus, id).await;
        signal(&worker, "-STOP");
        timeout(PATIENCE, async { while bus.reclaim(10).await.unwrap() == 0 {} }).await.unwrap();
        let taken_over = claim_one(&bus, "w").await;
        assert_eq!((taken_over.id, taken_over.attempt), (id, 2));
        signal(&worker, "-CONT");
        // it finds out, and goes on with other work
        let next = bus.enqueue(&order(json!({"work_ms": 700}))).await.unwrap().id;
        assert_eq!(ended(&bus, next).await["status"], "done");
        let completion = Completion { result: Some(json!({"holder": "w"})), ..Completion::default() };
        assert!(bus.complete(&taken_over.fence(), "w", &completion).await.unwrap(), "it is still ours");
        let row = ended(&bus, id).await;
        assert_eq!((&row["result"]["holder"], events(&bus, id, "execute_done").await), (&json!("w"), 1));
        assert_eq!(events(&bus, id, "execute_failed").await + events(&bus, id, "execute_retry").await, 1, "the lapse");
    }
}

#[tokio::test]
async fn foreign_worker_drops_what_is_cancelled() {
    for language in Language::ALL {
        let (bus, database) = bus().await;
        let hanging = bus.enqueue(&order(json!({"attempts": {"1": "hang"}}))).await.unwrap().id;
        let _worker = language.start(&database, LONG_LEASE_MS, 1);
        begun(&bus, hanging).await;
        let next = bus.enqueue(&order(json!({}))).await.unwrap().id;
        assert_eq!(bus.cancel(hanging).await.unwrap(), 1);
        // its only slot is free again
        assert_eq!(ended(&bus, next).await["status"], "done");
        assert_eq!(ended(&bus, hanging).await["status"], "cancelled");
        assert!(claim(&bus, "w", 1).await.is_empty());
    }
}
