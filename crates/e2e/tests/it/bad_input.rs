//! What comes in malformed, oversized or hostile gets a clear answer, and the fleet goes on.

use cogo_e2e::Fleet;
use serde_json::json;

const DOOR: &str = "/functions/v1/orchestrator-chat";

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_answered_and_harms_nobody() {
    let fleet = Fleet::start().unwrap();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = |value: serde_json::Value| value.to_string().into_bytes();
    let question = json!({"question": "?"});
    for (body, statuses) in [
        (b"".to_vec(), &[400_u16, 422][..]),
        (b"{".to_vec(), &[400]),
        (b"\xff\xfe{}".to_vec(), &[400]),
        (b"[]".to_vec(), &[400, 422]),
        (deep.into_bytes(), &[400]),
        (text(json!({"tenant": 7, "intent": "ask", "payload": question})), &[400, 422]),
        (text(json!({"tenant": "a b", "intent": "ask", "payload": question})), &[400, 422]),
        (text(json!({"tenant": "t", "intent": "ask", "payload": "text"})), &[400, 422]),
        (text(json!({"tenant": "t", "intent": "no-such-intent", "payload": question})), &[422]),
        (text(json!({"tenant": "t", "intent": "ask", "payload": {"question": "a\u{0}b"}})), &[400, 422]),
        (text(json!({"tenant": "t", "intent": "ask", "payload": {"question": "x".repeat(2_000_000)}})), &[413]),
        (text(json!({"tenant": "t", "intent": "ask", "payload": question, "surprise": 1})), &[400, 422]),
    ] {
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = fleet.call("POST", DOOR, Some(body)).await.unwrap();
        assert!(statuses.contains(&answer.status), "{start}: {answer:?}");
        assert_eq!(answer.media_type, "application/problem+json", "{start}");
        assert!(answer.body["detail"].is_string(), "{start}: {answer:?}");
    }
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("PUT", DOOR, 405),
        ("GET", "/tasks/not-an-id", 400),
        ("GET", "/tasks/01a1fbee-0000-7000-8000-000000000000", 404),
        ("DELETE", "/tasks/01a1fbee-0000-7000-8000-000000000000", 404),
    ] {
        let answer = fleet.call(method, path, None).await.unwrap();
        assert_eq!((answer.status, answer.media_type.as_str()), (status, "application/problem+json"), "{path}");
    }
    // straight onto the bus, past the front door: a dead letter with its reason
    let sent = fleet.cogo(&["send", "gateway", "chat", "--data", "{\"wrong\": 1}", "--json"]).unwrap().ok().unwrap();
    let id = sent.json().unwrap()["id"].as_str().unwrap().to_owned();
    let ended = fleet.result(&id).await.unwrap();
    assert_eq!(ended["status"], "failed");
    assert!(ended["error"].as_str().unwrap().contains("payload does not parse"), "{ended}");
    // and everybody is still there
    let status = fleet.cogo(&["status", "--json"]).unwrap().ok().unwrap().json().unwrap();
    for process in status["processes"].as_array().unwrap() {
        assert_eq!(process["restarts"], 0, "{process}");
    }
    assert!(fleet.ask("Is anybody there?").await.is_ok());
}
