//! The live stream.

use std::time::Duration;

use axum::{Router, body::Body, body::BodyDataStream, http::Request};
use cogo_metrics_server::{Console, router};
use futures_util::StreamExt;
use serde_json::Value;
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::it::seeded::{exposition, seed};

/// Far above what an event takes, so that only a stream that hangs fails.
const LONG: Duration = Duration::from_secs(60);

struct Streaming {
    server: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn streaming(pool: &PgPool) -> Streaming {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let console = Console::new(pool.clone(), exposition(), stop.clone());
    tasks.spawn(console.sample_while_watched());
    Streaming { server: router(console), stop, tasks }
}

struct Watcher {
    body: BodyDataStream,
    buffer: String,
}

#[derive(Debug, PartialEq)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

impl Watcher {
    async fn new(streaming: &Streaming) -> Self {
        let request = Request::get("/api/metrics/stream").body(Body::empty()).unwrap();
        let response = streaming.server.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The next event; none when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        while !self.buffer.contains("\n\n") {
            let chunk = tokio::time::timeout(LONG, self.body.next()).await.unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        let (event, rest) = self.buffer.split_once("\n\n").unwrap();
        let field = |name: &str| {
            let prefix = format!("{name}: ");
            event.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().to_owned()
        };
        let event = Event {
            id: field("id").parse().unwrap(),
            name: field("event"),
            data: serde_json::from_str(&field("data")).unwrap(),
        };
        self.buffer = rest.to_owned();
        Some(event)
    }
}

#[tokio::test]
async fn a_watcher_sees_the_state_and_then_each_change() {
    let database = cogo_test_support::database().await;
    let streaming = streaming(&database.pool);
    let mut watcher = Watcher::new(&streaming).await;
    let first = watcher.next().await.unwrap();
    assert_eq!((first.name.as_str(), &first.data["bus"]["byStatus"]["done"]), ("snapshot", &Value::from(0)));

    seed(&database.pool).await;
    loop {
        let event = watcher.next().await.unwrap();
        // what failed is seeded last, and a look may come between two of the statements
        if event.data["failures"][0]["count"] == 25 {
            assert_eq!(event.data["bus"]["byStatus"]["done"], 111);
            assert_eq!(event.data["bus"]["byStatus"]["cancelled"], 6);
            assert_eq!(event.data["messages"].as_array().unwrap().len(), 50);
            assert_eq!(event.data["agentList"], Value::Array(vec![]));
            return;
        }
    }
}

#[tokio::test]
async fn all_watchers_share_one_look_at_the_database() {
    let database = cogo_test_support::database().await;
    let streaming = streaming(&database.pool);
    // the look of the next second may fall between the two, but not each time
    for _ in 0..10 {
        let mut one = Watcher::new(&streaming).await;
        let first = one.next().await.unwrap();
        let mut other = Watcher::new(&streaming).await;
        if other.next().await.unwrap() == first {
            assert_eq!(one.next().await, other.next().await);
            return;
        }
    }
    panic!("who comes later never sees what was just read");
}

#[tokio::test]
async fn nothing_is_read_while_nobody_watches() {
    let database = cogo_test_support::database().await;
    let streaming = streaming(&database.pool);
    assert_eq!(Watcher::new(&streaming).await.next().await.unwrap().id, 1);
    let mut looks = Vec::new();
    // a look may fall between the last event and the end of its watcher, but not each time
    while looks.len() < 5 && looks.last() != Some(&1) {
        let before = Watcher::new(&streaming).await.next().await.unwrap().id;
        // long enough for two more looks, if there were any
        tokio::time::sleep(Duration::from_millis(2500)).await;
        looks.push(Watcher::new(&streaming).await.next().await.unwrap().id - before);
    }
    assert_eq!(looks.last(), Some(&1), "{looks:?}");
}

#[tokio::test]
async fn a_database_that_goes_away_is_told_and_the_stream_goes_on() {
    let database = cogo_test_support::database().await;
    let streaming = streaming(&database.pool);
    let mut watcher = Watcher::new(&streaming).await;
    watcher.next().await.unwrap();
    database.pool.close().await;
    loop {
        let event = watcher.next().await.unwrap();
        if event.name == "problem" {
            assert_eq!(event.data["code"], "unavailable");
            break;
        }
    }
    assert!(watcher.next().await.is_some());
}

#[tokio::test]
async fn a_stop_ends_streams_and_the_reader() {
    let database = cogo_test_support::database().await;
    let streaming = streaming(&database.pool);
    let mut watcher = Watcher::new(&streaming).await;
    watcher.next().await.unwrap();
    streaming.stop.cancel();
    while watcher.next().await.is_some() {}
    streaming.tasks.close();
    tokio::time::timeout(LONG, streaming.tasks.wait()).await.unwrap();
}
