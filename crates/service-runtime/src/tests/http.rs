//! The HTTP side: who is answered, how it ends, and what the liveness probe says.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use axum::{
    Json, Router,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    RequestBody,
    health::Health,
    listen::Ending,
    probes::{self, Served, ServiceRoutes},
};

const SOON: Duration = Duration::from_secs(20);

struct Side {
    address: SocketAddr,
    ending: Ending,
    health: Health,
    thread: thread::JoinHandle<()>,
    /// Lets the handler of `/slow` go on.
    go_on: Arc<Notify>,
    /// A handler of `/slow` has begun.
    begun: Arc<Notify>,
}

fn side(guarded: bool, header_timeout: Duration) -> Side {
    let (go_on, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wait, tell) = (Arc::clone(&go_on), Arc::clone(&begun));
    let slow = async move |RequestBody(body): RequestBody<Value>| {
        tell.notify_one();
        wait.notified().await;
        Json(body)
    };
    let router = Router::new().route("/slow", post(slow)).route("/fast", get(async || "fast"));
    let service = Arc::new(OnceLock::new());
    assert!(service.set(ServiceRoutes { router, own_metrics: false }).is_ok());
    let health = Health::default();
    let settings = cogo_telemetry::Settings::new("cogo-test", "0.0.0", "test/0");
    let (_unused, guard) = cogo_telemetry::assemble(&settings, std::io::sink, cogo_telemetry::Look::Json).unwrap();
    let exposition = guard.exposition();
    let served = Served { name: "test", health: health.clone(), exposition, guarded, header_timeout, service };
    let hard = CancellationToken::new();
    let ending = Ending { soft: CancellationToken::new(), hard, requests: TaskTracker::new() };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = probes::serve(served, listener, tokio::runtime::Handle::current(), ending.clone()).unwrap();
    Side { address, ending, health, thread, go_on, begun }
}

impl Side {
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
        rest(self.send(&request).await).await
    }

    async fn end(self) {
        self.ending.soft.cancel();
        self.ending.hard.cancel();
        tokio::task::spawn_blocking(move || self.thread.join()).await.unwrap().unwrap();
    }
}

/// Everything until the other side closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("no end of the answer").unwrap();
    answer
}

fn slow(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn request_under_way_at_the_soft_end_gets_its_answer() {
    let side = side(true, SOON);
    let idle = side.send("").await;
    let asked = side.send(&slow(r#"{"a":1}"#)).await;
    tokio::time::timeout(SOON, side.begun.notified()).await.unwrap();
    side.ending.soft.cancel();
    // nothing new is taken in, as soon as the listener is gone
    while TcpStream::connect(side.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    side.go_on.notify_one();
    let answer = rest(asked).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"a":1}"#), "{answer}");
    let ended = tokio::task::spawn_blocking(move || side.thread.join());
    tokio::time::timeout(SOON, ended).await.expect("an idle connection holds the end up").unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn request_that_does_not_end_is_dropped_at_the_hard_end() {
    let side = side(true, SOON);
    let asked = side.send(&slow("{}")).await;
    tokio::time::timeout(SOON, side.begun.notified()).await.unwrap();
    side.end().await;
    assert_eq!(rest(asked).await, "");
}

#[tokio::test]
async fn foreign_pages_are_answered_by_no_route_but_the_probes() {
    let guarded = side(true, SOON);
    for headers in ["host: evil.example\r\n", "host: localhost\r\norigin: https://evil.example\r\n"] {
        for path in ["/fast", "/chores", "/metrics", "/nowhere"] {
            let answer = guarded.get(path, headers).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("foreign-origin"), "{path} {answer}");
        }
        assert!(guarded.get("/livez", headers).await.starts_with("HTTP/1.1 200"));
    }
    for path in ["/fast", "/chores"] {
        let answer = guarded.get(path, "host: 127.0.0.1:3000\r\norigin: http://localhost:5173\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path} {answer}");
    }
    guarded.end().await;
    let keyed = side(false, SOON);
    assert!(keyed.get("/fast", "host: cogo.example\r\n").await.starts_with("HTTP/1.1 200"));
    keyed.end().await;
}

#[tokio::test]
async fn body_that_a_foreign_page_could_send_unasked_is_refused() {
    let side = side(true, SOON);
    let request = slow("{}").replace("application/json", "text/plain").replace("host:", "connection: close\r\nhost:");
    let answer = rest(side.send(&request).await).await;
    assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("application/problem+json"), "{answer}");
    side.end().await;
}

#[tokio::test]
async fn caller_that_never_ends_its_headers_is_cut_off() {
    let side = side(true, Duration::from_millis(200));
    let answer = rest(side.send("GET /fast HTTP/1.1\r\nhost: loc").await).await;
    assert!(!answer.contains("200"), "{answer}");
    side.end().await;
}

#[tokio::test]
async fn loop_that_does_not_turn_fails_the_liveness_probe() {
    let side = side(true, SOON);
    let live = async || side.get("/livez", "host: localhost\r\n").await;
    let pulse = side.health.pulses.add_with_limit("worker test".to_owned(), Duration::from_millis(50));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = live().await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("worker test"), "{answer}");
    pulse.retire();
    let answer = live().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&json!({"live": true, "stuck": []}).to_string()));
    side.health.pulses.add("fresh".to_owned(), Duration::ZERO).beat();
    assert!(live().await.starts_with("HTTP/1.1 200"));
    side.end().await;
}
