//! A front door on a database of its own, and a worker's hands on that database.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request},
    response::Response,
};
use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, Failure, WakeUps};
use cogo_contracts::{NewMessage, Route};
use cogo_gateway_api::{Gateway, Parts, Settings, database_guard, router};
use cogo_registry_core::{Registry, SchemaRegistry};
use cogo_service_runtime::{Dependency, Secret};
use cogo_telemetry::BusMetrics;
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use uuid::Uuid;

pub(super) const CHAT: &str = "/functions/v1/orchestrator-chat";
pub(super) const HOLDER: &str = "worker/0#test";

pub(super) struct Door {
    pub(super) router: Router,
    pub(super) bus: Bus,
    pub(super) stop: CancellationToken,
    pub(super) tracker: TaskTracker,
    // dropped last, as it removes the database
    _database: TestDatabase,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) json: Value,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts a problem of this kind and gives its words.
    pub(super) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!((self.status, self.json["code"].as_str()), (status, Some(code)), "{}", self.json);
        assert_eq!(self.header("content-type"), "application/problem+json");
        format!("{} {}", self.json["detail"], self.json["hint"])
    }
}

/// An open front door.
pub(super) async fn door() -> Door {
    door_with_keys(&[]).await
}

pub(super) async fn door_with_keys(keys: &[&str]) -> Door {
    let door = door_without_hints(keys).await;
    door.tracker.spawn(door.wakeups.clone().run(door.door.bus.pool().clone(), door.door.stop.clone()));
    door.door
}

pub(super) struct WithoutHints {
    pub(super) door: Door,
    pub(super) wakeups: WakeUps,
    tracker: TaskTracker,
}

/// A front door whose realtime subscription is dead.
pub(super) async fn door_without_hints(keys: &[&str]) -> WithoutHints {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let wakeups = WakeUps::default();
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let parts = Parts {
        bus: bus.clone(),
        schemas: SchemaRegistry::new(&Registry::new(database.pool.clone())),
        wakeups: wakeups.clone(),
        metrics: BusMetrics::unread(),
        database: Dependency::alone("database", &database_guard()).unwrap(),
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    let settings = Settings { api_keys: keys.iter().map(|&key| Secret::new(key)).collect() };
    let router = router(Arc::new(Gateway::new(parts, &settings).unwrap()));
    let door = Door { router, bus, stop, tracker: tracker.clone(), _database: database };
    WithoutHints { door, wakeups, tracker }
}

impl Door {
    pub(super) async fn raw(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.raw(request.body(body.into()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, json }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], Body::empty()).await
    }

    pub(super) async fn post(&self, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
        self.call("POST", CHAT, &headers, body.to_string()).await
    }

    /// Submits a good question and gives the task's id.
    pub(super) async fn submit(&self) -> Uuid {
        id_of(&self.post(&question("acme"), &[]).await)
    }

    pub(super) async fn claim(&self, route: &Route) -> Claimed {
        let request =
            ClaimRequest { route, holder: HOLDER, instance: None, max_messages: 1, lease: Duration::from_secs(60) };
        self.bus.claim(&request).await.unwrap().remove(0)
    }

    pub(super) async fn complete(&self, claimed: &Claimed, result: Value, follow_ups: Vec<NewMessage>) {
        let completion = Completion { result: Some(result), follow_ups, ..Completion::default() };
        assert!(self.bus.complete(&claimed.fence(), HOLDER, &completion).await.unwrap());
    }

    pub(super) async fn fail(&self, claimed: &Claimed, reason: &str) {
        let failure = Failure { reason: reason.to_owned(), retriable: false, retry_after: None };
        self.bus.fail(&claimed.fence(), HOLDER, &failure).await.unwrap().unwrap();
    }

    /// Returns once somebody follows the task.
    pub(super) async fn until_watched(&self, id: Uuid) {
        loop {
            let watched: bool = sqlx::query_scalar("select exists (select from bus.watchers where root_id = $1)")
                .bind(id)
                .fetch_one(self.bus.pool())
                .await
                .unwrap();
            if watched {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) fn question(tenant: &str) -> Value {
    json!({"tenant": tenant, "intent": "ask", "payload": {"question": "Who claims?"}})
}

pub(super) fn id_of(answer: &Answer) -> Uuid {
    assert_eq!(answer.status, 202, "{}", answer.json);
    answer.json["id"].as_str().unwrap().parse().unwrap()
}
