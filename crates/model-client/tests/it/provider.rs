//! A server on the own machine that answers as the test tells it to and remembers what it was asked.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use cogo_model_client::{ChatRequest, Message, OpenAi, Secret, Settings};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};

/// What the provider does with one request; the last one is repeated.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Status, a `Retry-After` if not empty, a body of JSON.
    Json(u16, &'static str, String),
    /// An event stream in these pieces; it then stays open if told so.
    Events(Vec<Vec<u8>>, Then),
    /// Points to another address.
    Redirect(String),
    /// No headers at all.
    Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Closes,
    StaysOpen,
    /// Repeats the last piece every millisecond.
    NeverEnds,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self::Json(status, "", r#"{"error": {"message": "not now"}}"#.to_owned())
    }

    pub(crate) fn ok(body: impl Into<String>) -> Self {
        Self::Json(200, "", body.into())
    }

    pub(crate) fn events(text: &str) -> Self {
        Self::Events(vec![text.as_bytes().to_vec()], Then::Closes)
    }

    pub(crate) fn stalling(text: &str) -> Self {
        Self::Events(vec![text.as_bytes().to_vec()], Then::StaysOpen)
    }

    pub(crate) fn endless(text: &str) -> Self {
        Self::Events(vec![text.as_bytes().to_vec()], Then::NeverEnds)
    }
}

/// One event with a piece of text.
pub(crate) fn delta(text: &str) -> String {
    let chunk = serde_json::json!({"model": "small", "choices": [{"delta": {"content": text}}]});
    format!("data: {chunk}\n\n")
}

/// The end of a stream that reports 7 tokens in and 5 out.
pub(crate) const END: &str = concat!(
    "data: {\"model\": \"small\", \"choices\": [{\"delta\": {}, \"finish_reason\": \"stop\"}]}\n\n",
    "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 7, \"completion_tokens\": 5}}\n\n",
    "data: [DONE]\n\n"
);

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    left: mpsc::UnboundedSender<()>,
}

pub(crate) struct Provider {
    pub(crate) base_url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    left: mpsc::UnboundedReceiver<()>,
    /// Ends the server when the test ends.
    _server: JoinSet<()>,
}

impl Provider {
    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (left_sender, left) = mpsc::unbounded_channel();
        let script = Script {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            asked: Arc::default(),
            left: left_sender,
        };
        let asked = Arc::clone(&script.asked);
        let router = Router::new().fallback(answer).with_state(script);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base_url, asked, left, _server: server }
    }

    /// Settings whose time-outs nothing here runs into; a test of one of them shortens just that one.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            base_url: self.base_url.clone(),
            api_key: Some(Secret::new("sk-test")),
            chat_model: "small".to_owned(),
            embedding_model: "tiny".to_owned(),
            retry_backoff: Duration::from_millis(5),
            ..Settings::default()
        }
    }

    pub(crate) fn client(&self) -> OpenAi {
        OpenAi::new(self.settings()).unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until a stream that was left open is closed from the other side.
    pub(crate) async fn client_left(&mut self) {
        tokio::time::timeout(Duration::from_secs(60), self.left.recv())
            .await
            .expect("the client must close its connection")
            .unwrap();
    }
}

/// A question of 10 + 4 estimated tokens.
pub(crate) fn question() -> ChatRequest {
    ChatRequest::new(vec![Message::user("q".repeat(40))])
}

/// Says that the body was dropped.
struct Leaving(mpsc::UnboundedSender<()>);

impl Drop for Leaving {
    fn drop(&mut self) {
        // The test may have ended already.
        let _gone = self.0.send(());
    }
}

async fn answer(State(script): State<Script>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let authorization = headers.get("authorization");
    script.asked.lock().unwrap().push(Asked {
        path: uri.path().to_owned(),
        authorization: authorization.map(|value| value.to_str().unwrap().to_owned()),
        body: serde_json::from_slice(&body).unwrap(),
    });
    let next = {
        let mut answers = script.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers.front().unwrap().clone() }
    };
    match next {
        Answer::Silence => std::future::pending().await,
        Answer::Redirect(address) => (StatusCode::TEMPORARY_REDIRECT, [("location", address)]).into_response(),
        Answer::Json(status, retry_after, body) => {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", "application/json".parse().unwrap());
            if !retry_after.is_empty() {
                headers.insert("retry-after", retry_after.parse().unwrap());
            }
            (StatusCode::from_u16(status).unwrap(), headers, body).into_response()
        }
        Answer::Events(pieces, then) => {
            let leaving = Leaving(script.left.clone());
            let body = Body::from_stream(pieces_of(pieces, then).map(move |piece| {
                let _held = &leaving;
                Ok::<_, Infallible>(Bytes::from(piece))
            }));
            ([("content-type", "text/event-stream")], body).into_response()
        }
    }
}

fn pieces_of(pieces: Vec<Vec<u8>>, then: Then) -> stream::BoxStream<'static, Vec<u8>> {
    let last = pieces.last().unwrap().clone();
    let written = stream::iter(pieces);
    match then {
        Then::Closes => written.boxed(),
        Then::StaysOpen => written.chain(stream::pending()).boxed(),
        Then::NeverEnds => {
            let more = stream::unfold(last, |piece| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((piece.clone(), piece))
            });
            written.chain(more).boxed()
        }
    }
}
