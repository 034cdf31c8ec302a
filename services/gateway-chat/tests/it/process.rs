//! The process itself: started as in production, asked over the bus.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, http::header::CONTENT_TYPE, routing::post};
use cogo_bus_core::Bus;
use cogo_contracts::{ChatMode, ChatReply, NewMessage, TaskStatus, Tenant, routes};
use cogo_registry_core::{Proposal, Registry, RolloutState};
use cogo_test_support::TestDatabase;
use serde::Deserialize;
use serde_json::json;

use crate::support::{TENANT, check_citations, fixture, indexed};

/// Ends with the test.
struct Process(Child);

impl Process {
    fn start(database: &TestDatabase, settings: &[(&str, &str)]) -> Self {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cogo-gateway-chat"));
        command
            .env("DATABASE_URL", &database.url)
            .env("COGO_CONFIG_DIR", config)
            .env("COGO_PORT", "0")
            .env("RUST_LOG", "error")
            .stdin(Stdio::null());
        for (name, value) in settings {
            command.env(name, value);
        }
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn ask(database: &TestDatabase, question: &str) -> ChatReply {
    let bus = Bus::new(database.pool.clone());
    let payload = json!({"question": question, "__assignment": {"budget": {"maxCostUsd": 0.1, "maxTokens": 100_000}}});
    let message = NewMessage::new(routes::CHAT, Some(Tenant::new(TENANT).unwrap()), payload);
    let id = bus.enqueue(&message).await.unwrap().id;
    let patience = Instant::now() + Duration::from_secs(90);
    loop {
        let task = bus.task(id).await.unwrap().unwrap();
        if task.status.is_terminal() {
            assert_eq!(task.status, TaskStatus::Done, "{:?}", task.error);
            let reply = ChatReply::deserialize(task.result.unwrap()).unwrap();
            let snippet = task.steps[0].result_snippet.clone().unwrap();
            assert!(reply.answer.starts_with(&snippet), "{snippet}");
            return reply;
        }
        assert!(Instant::now() < patience, "no answer: {task:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn process_without_a_model_answers_from_graph_and_passages() {
    let database = indexed().await;
    let _process = Process::start(&database, &[]);
    let reply = ask(&database, "who imports `Lease`?").await;
    assert_eq!(reply.mode, ChatMode::Graph);
    check_citations(&reply, &fixture());
    let reply = ask(&database, "What does `is_expired` do?").await;
    assert_eq!(reply.mode, ChatMode::Extractive);
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn process_with_an_endpoint_lets_its_model_write() {
    const EVENTS: &str = "data: {\"model\":\"small-1\",\"choices\":[{\"delta\":{\"content\":\"Whether it ran out [1][8].\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":100}}\n\n\
        data: [DONE]\n\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let answer = post(|| async { ([(CONTENT_TYPE, "text/event-stream")], EVENTS) });
    let provider = axum::serve(listener, Router::new().route("/v1/chat/completions", answer));
    let database = indexed().await;
    let settings = [
        ("COGO_MODEL_BASE_URL", address.as_str()),
        ("COGO_MODEL_API_KEY", "sk-1"),
        ("COGO_MODEL_CHAT", "small-1"),
        ("COGO_MODEL_INPUT_USD_PER_MILLION", "1"),
        ("COGO_GATEWAY_CHAT_MODEL_OUTPUT_USD_PER_MILLION", "2.5"),
        ("COGO_CHAT_PASSAGES", "3"),
    ];
    let _process = Process::start(&database, &settings);
    let reply = tokio::select! {
        reply = ask(&database, "What does `is_expired` do?") => reply,
        ended = provider => panic!("provider ended: {ended:?}"),
    };
    assert_eq!((reply.mode, reply.answer.as_str()), (ChatMode::Llm, "Whether it ran out [1]."), "{:?}", reply.degraded);
    assert_eq!((reply.model.as_deref(), reply.usage.estimated), (Some("small-1"), false));
    assert!((reply.usage.cost_usd - 0.001_25).abs() < 1e-12, "{}", reply.usage.cost_usd);
    check_citations(&reply, &fixture());
}

/// Waits for the end of a rollout of these settings; answers how it ended and why.
async fn rolled_out(registry: &Registry, settings: serde_json::Value) -> (RolloutState, String) {
    let document = settings.as_object().unwrap().clone();
    let proposal = Proposal::new("test").set("gateway-chat", document).within(30_000, 200);
    let version = registry.propose_config(&proposal).await.unwrap();
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        let rollout = registry.rollout(version).await.unwrap().unwrap();
        if !matches!(rollout.state, RolloutState::Validating | RolloutState::Applying) {
            return (rollout.state, rollout.reason.unwrap_or_default());
        }
        assert!(Instant::now() < patience, "{rollout:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn model_of_a_running_process_is_changed_by_a_rollout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    // it answers in the name of the model that was asked for
    let answer = post(|axum::Json(body): axum::Json<serde_json::Value>| async move {
        let model = body["model"].as_str().unwrap().to_owned();
        let events = format!(
            "data: {{\"model\":\"{model}\",\"choices\":[{{\"delta\":{{\"content\":\"It ran out [1].\"}}}}]}}\n\n\
             data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
        );
        ([(CONTENT_TYPE, "text/event-stream")], events)
    });
    let provider = axum::serve(listener, Router::new().route("/v1/chat/completions", answer));
    let database = indexed().await;
    let settings = [
        ("COGO_MODEL_BASE_URL", address.as_str()),
        ("COGO_MODEL_CHAT", "small-1"),
        ("COGO_MODEL_INPUT_USD_PER_MILLION", "0"),
        ("COGO_MODEL_OUTPUT_USD_PER_MILLION", "0"),
    ];
    let _process = Process::start(&database, &settings);
    let changing = async {
        let question = "What does `is_expired` do?";
        assert_eq!(ask(&database, question).await.model.as_deref(), Some("small-1"));
        let registry = Registry::new(database.pool.clone());
        // the beat that tells of a new version may be seconds away
        let changed = rolled_out(&registry, json!({"model_chat": "large-2", "chat_passages": 2})).await;
        assert_eq!(changed, (RolloutState::Live, String::new()));
        assert_eq!(ask(&database, question).await.model.as_deref(), Some("large-2"));
        for (refused, reason) in [
            (json!({"chat_passages": 0}), "chat_passages must be at least 1"),
            (json!({"model_base_url": "http://elsewhere"}), "model_base_url cannot be changed"),
            (json!({"model_input_usd_per_million": -1.0}), "model_input_usd_per_million must be"),
        ] {
            let (state, why) = rolled_out(&registry, refused).await;
            assert_eq!(state, RolloutState::Refused);
            assert!(why.contains(reason), "{why}");
        }
        assert_eq!(ask(&database, question).await.model.as_deref(), Some("large-2"));
    };
    tokio::select! {
        () = changing => {}
        ended = provider => panic!("provider ended: {ended:?}"),
    }
}
