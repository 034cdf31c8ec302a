//! Following a task's steps as they happen.

use std::time::Duration;

use axum::{body::Body, http::Request};
use cogo_contracts::{NewMessage, routes};
use futures_util::{StreamExt, stream::BoxStream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use super::support::{Door, door};

const SOON: Duration = Duration::from_secs(60);

/// Events of a stream, one JSON value each with its name.
pub(super) struct Events {
    chunks: BoxStream<'static, String>,
    pending: String,
    /// Id of the last event that had one.
    pub(super) last_id: Option<String>,
}

impl Events {
    pub(super) async fn open(door: &Door, path: &str) -> Self {
        Self::open_after(door, path, None).await
    }

    pub(super) async fn open_after(door: &Door, path: &str, last_id: Option<&str>) -> Self {
        let mut request = Request::builder().uri(path).header("accept", "text/event-stream");
        if let Some(last_id) = last_id {
            request = request.header("last-event-id", last_id);
        }
        let response = door.raw(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let stream = response.into_body().into_data_stream();
        let chunks = stream.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).boxed();
        Self { chunks, pending: String::new(), last_id: None }
    }

    /// The next event with data; none at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((event, rest)) = self.pending.split_once("\n\n") {
                let event = event.to_owned();
                self.pending = rest.to_owned();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                self.last_id = field("id: ").or(self.last_id.take());
                if let (Some(name), Some(data)) = (field("event: "), field("data: ")) {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
            }
            let chunk = tokio::time::timeout(SOON, self.chunks.next()).await.expect("the stream stalls")?;
            self.pending.push_str(&chunk);
        }
    }

    async fn expect_step(&mut self, role: &str, status: &str) {
        let (name, frame) = self.next().await.unwrap();
        assert_eq!(name, "step", "{frame}");
        let step = &frame["step"];
        assert_eq!((step["role"].as_str(), step["status"].as_str()), (Some(role), Some(status)), "{frame}");
    }
}

#[tokio::test]
async fn steps_arrive_in_order_from_snapshot_to_end() {
    let door = door().await;
    let id = door.submit().await;
    for path in [format!("/tasks/{id}/stream"), format!("/tasks/stream/{id}")] {
        let (name, frame) = Events::open(&door, &path).await.next().await.unwrap();
        assert_eq!((name.as_str(), &frame["type"]), ("snapshot", &json!("snapshot")), "{path}");
    }
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    let (name, frame) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &frame["task"]["status"]), ("snapshot", &json!("queued")));

    let decide = door.claim(&routes::DECIDE).await;
    events.expect_step("decide", "claimed").await;
    let follow_up = NewMessage::new(routes::CHAT, None, json!({}));
    door.complete(&decide, json!({}), vec![follow_up]).await;
    events.expect_step("decide", "done").await;
    events.expect_step("chat", "queued").await;
    let chat = door.claim(&routes::CHAT).await;
    events.expect_step("chat", "claimed").await;
    door.complete(&chat, json!({"answer": "yes"}), Vec::new()).await;
    events.expect_step("chat", "done").await;
    let (name, frame) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &frame["status"], &frame["result"]), ("end", &json!("done"), &json!({"answer": "yes"})));
    assert_eq!(events.next().await, None);

    // who comes back later gets everything at once
    let mut again = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    assert_eq!(again.next().await.unwrap().1["task"]["steps"].as_array().unwrap().len(), 2);
    assert_eq!(again.next().await.unwrap().0, "end");
    assert_eq!(again.next().await, None);
}

#[tokio::test]
async fn stream_ends_at_the_stop_and_is_not_forced_on_others() {
    let door = door().await;
    let id = door.submit().await;
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    assert_eq!(events.next().await.unwrap().0, "snapshot");
    let headers = [("accept", "text/html, application/json;q=0.9")];
    let page = door.call("GET", &format!("/tasks/{id}/stream"), &headers, Body::empty()).await;
    page.problem(406, "not-a-stream");
    door.stop.cancel();
    assert_eq!(events.next().await, None);
    door.tracker.close();
    tokio::time::timeout(SOON, door.tracker.wait()).await.expect("a task of a stream outlives the stop");
}

#[tokio::test]
async fn reader_that_leaves_ends_its_producer() {
    let door = door().await;
    let id = door.submit().await;
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    assert_eq!(events.next().await.unwrap().0, "snapshot");
    assert_eq!(door.tracker.len(), 2, "the subscription and one producer");
    drop(events);
    while door.tracker.len() > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn websocket_carries_the_same_frames() {
    let door = door().await;
    let id = door.submit().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, stop) = (door.router.clone(), door.stop.clone());
    door.tracker.spawn(async move {
        tokio::select! {
            served = axum::serve(listener, router).into_future() => served.unwrap(),
            () = stop.cancelled() => {}
        }
    });
    let url = format!("ws://{address}/tasks/stream/{id}");
    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let mut next = async || loop {
        match tokio::time::timeout(SOON, socket.next()).await.expect("the socket stalls") {
            Some(Ok(Message::Text(text))) => return Some(serde_json::from_str::<Value>(&text).unwrap()),
            Some(Ok(Message::Close(frame))) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                return None;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    let snapshot = next().await.unwrap();
    assert_eq!((&snapshot["type"], &snapshot["task"]["id"]), (&json!("snapshot"), &json!(id)));
    let decide = door.claim(&routes::DECIDE).await;
    assert_eq!(next().await.unwrap()["step"]["status"], "claimed");
    door.complete(&decide, json!({"n": 1}), Vec::new()).await;
    assert_eq!(next().await.unwrap()["step"]["status"], "done");
    let end = next().await.unwrap();
    assert_eq!((&end["type"], &end["result"]), (&json!("end"), &json!({"n": 1})));
    assert_eq!(next().await, None);

    let refused =
        tokio_tungstenite::connect_async(&format!("ws://{address}/tasks/stream/{}", uuid::Uuid::now_v7())).await;
    assert!(matches!(refused, Err(tokio_tungstenite::tungstenite::Error::Http(response)) if response.status() == 404));
}
