//! `cogo ask`, `index` and `bench ask` against a front door that says what the test wants.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::{get, post},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Cogo, PATIENCE, ended, eventually};

const TASK: &str = "01999999-0000-7000-8000-000000000001";

/// What the front door does.
#[derive(Clone)]
struct Script {
    /// The reply of the task, or none for one that fails.
    reply: Option<Value>,
    /// How long the result takes.
    delay: Duration,
    /// Looks at the result that come too early.
    early: usize,
    looks: Arc<AtomicUsize>,
    /// Results that are under way, and the most that ever were.
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
}

struct Door {
    url: String,
    most_open: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn door(reply: Option<Value>, delay: Duration, early: usize) -> Door {
    let script = Script { reply, delay, early, looks: Arc::default(), open: Arc::default(), most_open: Arc::default() };
    let most_open = Arc::clone(&script.most_open);
    let router = Router::new()
        .route("/functions/v1/orchestrator-chat", post(accept))
        .route("/tasks/{id}/result", get(result))
        .with_state(script);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "a test has no frame; the task ends with the value")]
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Door { url, most_open, serving }
}

async fn accept(headers: HeaderMap, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    assert_eq!((&body["intent"], &body["tenant"]), (&json!("ask"), &json!("default")));
    if headers.get(AUTHORIZATION).is_none_or(|key| key != "Bearer secret") {
        let problem = json!({"code": "unauthorized", "title": "Not allowed", "status": 401, "detail": "no key"});
        return (StatusCode::UNAUTHORIZED, Json(problem));
    }
    (StatusCode::ACCEPTED, Json(json!({"id": TASK})))
}

async fn result(State(script): State<Script>) -> (StatusCode, Json<Value>) {
    script.most_open.fetch_max(script.open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    tokio::time::sleep(script.delay).await;
    script.open.fetch_sub(1, Ordering::Relaxed);
    if script.looks.fetch_add(1, Ordering::Relaxed) < script.early {
        return (StatusCode::ACCEPTED, Json(json!({"id": TASK, "status": "running"})));
    }
    let ending = match script.reply {
        Some(reply) => json!({"id": TASK, "status": "done", "result": reply}),
        None => json!({"id": TASK, "status": "failed", "error": "the index is gone"}),
    };
    (StatusCode::OK, Json(ending))
}

fn cited() -> Value {
    let citation = json!({"path": "a.rs", "start": 1, "end": 2, "collection": "c", "sha256": "", "text": "fn one() {}\nfn two() {}"});
    json!({"answer": "Two functions [1].", "mode": "extractive", "citations": [citation]})
}

fn abstained() -> Value {
    json!({"answer": "Nothing was found.", "mode": "abstain", "citations": []})
}

async fn ask(cogo: &Cogo, door: &Door, more: &[&str]) -> crate::support::Ended {
    cogo.run(&[&["ask", "what?", "--url", &door.url, "--api-key", "secret"], more].concat()).await
}

#[tokio::test]
async fn answers_come_with_their_numbered_citations() {
    let cogo = Cogo::without_database();
    let door = door(Some(cited()), Duration::ZERO, 2).await;
    let ended = ask(&cogo, &door, &[]).await.expect(0);
    assert_eq!(ended.stdout, "Two functions [1].\n\n[1] a.rs:1-2\n    fn one() {}\n    fn two() {}\n");
    assert!(ended.stderr.contains("mode extractive") && ended.stderr.contains(&format!("task {TASK}")), "{ended:?}");
    let value = ask(&cogo, &door, &["--json"]).await.expect(0).json();
    assert_eq!((&value["task"], &value["citations"][0]["path"]), (&json!(TASK), &json!("a.rs")));
}

#[tokio::test]
async fn citations_can_be_required_and_verified() {
    let cogo = Cogo::without_database();
    let file = cogo.file("a.rs", "fn one() {}\nfn two() {}\n");
    let root = file.parent().unwrap().to_string_lossy().into_owned();
    let good = door(Some(cited()), Duration::ZERO, 0).await;
    ask(&cogo, &good, &["--require-citation", "--verify", &root]).await.expect(0);
    cogo.file("a.rs", "fn one() {}\nfn three() {}\n");
    let stale = ask(&cogo, &good, &["--verify", &root]).await.expect(1);
    assert!(stale.stderr.contains("a.rs:1-2"), "{stale:?}");

    let none = door(Some(abstained()), Duration::ZERO, 0).await;
    ask(&cogo, &none, &[]).await.expect(0);
    let required = ask(&cogo, &none, &["--require-citation"]).await.expect(1);
    assert!(required.stdout.contains("Nothing was found"), "{required:?}");
}

#[tokio::test]
async fn refusals_failures_and_slow_answers_have_their_exit_codes() {
    let cogo = Cogo::without_database();
    let failing = door(None, Duration::ZERO, 0).await;
    let ended = ask(&cogo, &failing, &["--json"]).await.expect(1);
    assert!(ended.problem()["detail"].as_str().unwrap().contains("the index is gone"));
    let refused = cogo.run(&["ask", "what?", "--url", &failing.url, "--json"]).await.expect(5);
    assert!(refused.problem()["hint"].as_str().unwrap().contains("COGO_API_KEY"));
    let slow = door(Some(cited()), Duration::from_millis(400), usize::MAX).await;
    ask(&cogo, &slow, &["--timeout", "1"]).await.expect(6);
}

#[tokio::test]
async fn breaking_off_a_question_tells_its_task() {
    let cogo = Cogo::without_database();
    let slow = door(Some(cited()), Duration::from_millis(400), usize::MAX).await;
    let child = cogo.command(&["ask", "what?", "--url", &slow.url, "--api-key", "secret", "--json"]).spawn().unwrap();
    eventually("it waits", async || slow.most_open.load(Ordering::Relaxed) > 0).await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let problem = ended(output).expect(130).problem();
    assert_eq!((&problem["code"], &problem["id"]), (&json!("interrupted"), &json!(TASK)));
    assert!(problem["hint"].as_str().unwrap().contains(&format!("cogo cancel {TASK}")), "{problem}");
}

#[tokio::test]
async fn slow_answers_do_not_hold_up_the_next_question() {
    let cogo = Cogo::without_database();
    let delay = Duration::from_millis(700);
    let door = door(Some(cited()), delay, 0).await;
    let arguments =
        ["bench", "ask", "--rate", "10", "--seconds", "1", "--url", &door.url, "--api-key", "secret", "--json"];
    let ended = cogo.run(&arguments).await.expect(0);
    // a question each 100 ms, and 700 ms for each answer; one after the other it would be one at a time
    let most = door.most_open.load(Ordering::Relaxed);
    assert!(most > 3, "{most} at once");
    let report: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&report["n"], &report["failed"], &report["uncited"]), (&json!(10), &json!(0), &json!(0)));
    assert!(report["p50_ms"].as_f64().unwrap() >= 700.0, "{report}");
}
