//! States, results, waiting for them and taking tasks back.

use std::time::{Duration, Instant};

use axum::body::Body;
use cogo_contracts::{NewMessage, routes};
use serde_json::json;

use super::support::{door, door_without_hints};

#[tokio::test]
async fn result_is_that_of_the_last_step() {
    let door = door().await;
    let id = door.submit().await;
    let path = format!("/tasks/{id}/result");
    let early = door.get(&path).await;
    assert_eq!((early.status, early.header("retry-after")), (202, "1"));
    assert_eq!(early.json, json!({"id": id, "status": "queued"}));

    let decide = door.claim(&routes::DECIDE).await;
    let follow_up = NewMessage::new(routes::CHAT, None, json!({"question": "?"}));
    door.complete(&decide, json!({"picked": "chat"}), vec![follow_up]).await;
    let midway = door.get(&path).await;
    assert_eq!((midway.status, &midway.json), (202, &json!({"id": id, "status": "running"})));

    let chat = door.claim(&routes::CHAT).await;
    door.complete(&chat, json!({"answer": 42}), Vec::new()).await;
    let answer = door.get(&path).await;
    assert_eq!(
        (answer.status, &answer.json["status"], &answer.json["result"]),
        (200, &json!("done"), &json!({"answer": 42}))
    );
}

#[tokio::test]
async fn failure_is_a_result_with_its_reason() {
    let door = door().await;
    let id = door.submit().await;
    let claimed = door.claim(&routes::DECIDE).await;
    door.fail(&claimed, "nobody can do that").await;
    let answer = door.get(&format!("/tasks/{id}/result?wait_ms=1000")).await;
    assert_eq!((answer.status, &answer.json["status"]), (200, &json!("failed")));
    assert_eq!(answer.json["error"], "nobody can do that");
}

#[tokio::test]
async fn waiting_caller_hears_of_the_completion_at_once() {
    let door = door().await;
    let mut late = Vec::new();
    // the fastest of some, since the machine may stand still in any one of them
    for _ in 0..10 {
        let id = door.submit().await;
        let claimed = door.claim(&routes::DECIDE).await;
        let path = format!("/tasks/{id}/result?wait_ms=30000");
        let complete = async {
            door.until_watched(id).await;
            let completed = Instant::now();
            door.complete(&claimed, json!({"answer": 1}), Vec::new()).await;
            completed
        };
        let (answer, completed) = tokio::join!(door.get(&path), complete);
        late.push(completed.elapsed());
        assert_eq!((answer.status, &answer.json["result"]), (200, &json!({"answer": 1})));
        if late.last().is_some_and(|late| *late < Duration::from_millis(700)) {
            return;
        }
    }
    panic!("answered {late:?} after the completions, so the hints were not heard");
}

#[tokio::test]
async fn lost_hint_costs_a_second_and_no_result() {
    let door = door_without_hints(&[]).await.door;
    let id = door.submit().await;
    let claimed = door.claim(&routes::DECIDE).await;
    let path = format!("/tasks/{id}/result?wait_ms=30000");
    let complete = async {
        door.until_watched(id).await;
        door.complete(&claimed, json!({}), Vec::new()).await;
        Instant::now()
    };
    let (answer, completed) = tokio::join!(door.get(&path), complete);
    assert_eq!(answer.status, 200);
    assert!(completed.elapsed() < Duration::from_secs(25));
}

#[tokio::test]
async fn wait_ends_when_its_time_is_over_and_at_the_stop() {
    let door = door().await;
    let id = door.submit().await;
    let started = Instant::now();
    assert_eq!(door.get(&format!("/tasks/{id}/result?wait_ms=300")).await.status, 202);
    assert!(started.elapsed() >= Duration::from_millis(300));

    let path = format!("/tasks/{id}/result?wait_ms=60000");
    let stop = async { door.stop.cancel() };
    let (answer, ()) = tokio::join!(door.get(&path), stop);
    assert_eq!(answer.status, 202);
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[tokio::test]
async fn task_is_taken_back_once() {
    let door = door().await;
    let id = door.submit().await;
    let path = format!("/tasks/{id}");
    let answer = door.call("DELETE", &path, &[], Body::empty()).await;
    assert_eq!((answer.status, &answer.json), (200, &json!({"id": id, "cancelled": 1})));
    let again = door.call("DELETE", &path, &[], Body::empty()).await;
    assert!(again.problem(409, "already-ended").contains("cancelled"));
    let result = door.get(&format!("{path}/result")).await;
    assert_eq!((result.status, &result.json["status"]), (200, &json!("cancelled")));
}
