//! Following an answer while it is written.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    response::Response,
};
use cogo_bus_core::Bus;
use cogo_contracts::{Assignment, NewMessage, Tenant, routes};
use cogo_gateway_chat::{Asked, router};
use cogo_model_client::scripted::{ScriptedModel, Turn};
use futures_util::StreamExt;
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::support::{Bench, TENANT, asked, bench, indexed, question};

const QUESTION: &str = "What does `is_expired` do?";

async fn follow(bench: &Bench, id: &str) -> Response {
    let request = Request::get(format!("/chat/stream/{id}")).body(Body::empty()).unwrap();
    router(Arc::clone(&bench.live)).oneshot(request).await.unwrap()
}

async fn text(response: Response) -> String {
    let reading = to_bytes(response.into_body(), 1 << 20);
    let bytes = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("stream ends").unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn message(pool: &PgPool) -> Uuid {
    let message = NewMessage::new(routes::CHAT, Some(Tenant::new(TENANT).unwrap()), json!({"question": QUESTION}));
    Bus::new(pool.clone()).enqueue(&message).await.unwrap().id
}

#[tokio::test]
async fn follower_reads_what_the_model_writes_and_the_end() {
    let database = indexed().await;
    let bench = bench(&database.pool, Some(ScriptedModel::new([Turn::deltas(["Silent ", "[1]."])])));
    let id = message(&database.pool).await;
    let response = follow(&bench, &id.to_string()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let assignment = Assignment::default();
    let asked = Asked { message: Uuid::now_v7(), task: id, ..asked(&assignment) };
    bench.chat.answer(&question(QUESTION), &asked).await.unwrap();
    let events = text(response).await;
    assert!(events.starts_with("event: delta\ndata: {\"text\":\"Silent "), "{events}");
    assert!(events.ends_with("event: end\ndata: {\"mode\":\"llm\"}\n\n"), "{events}");
}

#[tokio::test]
async fn follower_sees_pieces_before_the_answer_is_whole() {
    let database = indexed().await;
    let model = ScriptedModel::new([Turn::deltas(["Silent "]).then_stalls()]);
    let bench = bench(&database.pool, Some(model));
    let id = message(&database.pool).await;
    let mut body = follow(&bench, &id.to_string()).await.into_body().into_data_stream();
    let assignment = Assignment::default();
    let token = CancellationToken::new();
    let asked = Asked { message: id, token: token.clone(), ..asked(&assignment) };
    let request = question(QUESTION);
    let watching = async {
        let first = body.next().await.unwrap().unwrap();
        assert!(first.starts_with(b"event: delta\ndata: {\"text\":\"Silent \"}"));
        token.cancel();
        body.next().await.unwrap().unwrap()
    };
    let (reply, last) = tokio::join!(bench.chat.answer(&request, &asked), watching);
    assert!(reply.unwrap().degraded.unwrap().contains("cancelled"));
    assert_eq!(last, "event: end\ndata: {\"mode\":\"extractive\"}\n\n");
}

#[tokio::test]
async fn attempt_that_is_dropped_ends_the_stream_without_a_mode() {
    let database = indexed().await;
    let model = ScriptedModel::new([Turn::deltas(["Silent "]).then_stalls()]);
    let bench = bench(&database.pool, Some(model));
    let id = message(&database.pool).await;
    let mut body = follow(&bench, &id.to_string()).await.into_body().into_data_stream();
    let assignment = Assignment::default();
    let asked = Asked { message: id, ..asked(&assignment) };
    let request = question(QUESTION);
    tokio::select! {
        reply = bench.chat.answer(&request, &asked) => panic!("the model stalls: {reply:?}"),
        first = body.next() => assert!(first.unwrap().unwrap().starts_with(b"event: delta\n")),
    }
    let mut last = Vec::new();
    while let Some(piece) = body.next().await {
        last = piece.unwrap().to_vec();
    }
    assert!(last.ends_with(b"event: end\ndata: {\"mode\":null}\n\n"));
}

#[tokio::test]
async fn finished_unknown_and_malformed_ids_do_not_wait() {
    let database = indexed().await;
    let bench = bench(&database.pool, None);
    let id = message(&database.pool).await;
    Bus::new(database.pool.clone()).cancel(id).await.unwrap();
    assert_eq!(text(follow(&bench, &id.to_string()).await).await, "event: end\ndata: {\"mode\":null}\n\n");
    assert_eq!(follow(&bench, &Uuid::now_v7().to_string()).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(follow(&bench, "7").await.status(), StatusCode::BAD_REQUEST);
}
