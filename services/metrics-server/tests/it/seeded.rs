//! A server under test and rows whose figures are known.

use std::sync::LazyLock;

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, StatusCode},
};
use cogo_metrics_server::{Console, router};
use cogo_registry_core::{Registration, Registry, detect_location};
use cogo_telemetry::{Exposition, Guard, Look, Settings, assemble};
use futures_util::StreamExt;
use serde_json::Value;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Telemetry of the process under test; once shut down it would show nothing.
static TELEMETRY: LazyLock<Guard> = LazyLock::new(|| {
    let settings = Settings::new("cogo-metrics-server", "0.0.0", "metrics-server/0");
    let (_unused, guard) = assemble(&settings, std::io::sink, Look::Json).unwrap();
    guard
});

/// What `/metrics` shows of the process itself.
pub(crate) fn exposition() -> Exposition {
    TELEMETRY.exposition()
}

/// The server's routes on a database.
pub(crate) fn server(pool: &PgPool) -> Router {
    router(Console::new(pool.clone(), exposition(), CancellationToken::new()))
}

/// What the server answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends a GET and reads the whole answer.
pub(crate) async fn get(server: &Router, address: &str) -> Answer {
    let request = Request::get(address).body(Body::empty()).unwrap();
    let response = server.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let chunks: Vec<_> = body.into_data_stream().map(Result::unwrap).collect().await;
    Answer { status: parts.status, headers: parts.headers, body: chunks.concat().into() }
}

/// As [`get`], for an answer of 200 with JSON.
pub(crate) async fn get_json(server: &Router, address: &str) -> Value {
    let answer = get(server, address).await;
    assert_eq!(answer.status, StatusCode::OK, "{address}: {}", answer.text());
    answer.json()
}

/// Asks for something that must be refused, and answers the problem.
pub(crate) async fn refused(server: &Router, address: &str, status: u16) -> Value {
    let answer = get(server, address).await;
    assert_eq!(answer.status.as_u16(), status, "{address}: {}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem["code"].is_string() && problem["detail"].is_string());
    problem
}

/// Rows in every status on two routes, with times that no function of the bus would give so exactly, and what stands beside
/// them on the bus.
///
/// Done on rag/embed/0 within the window: 100 with latencies of 1 to 100 ms and waits of half of that.
pub(crate) async fn seed(pool: &PgPool) {
    let statements = [
        "alter table public.agent_messages disable trigger user",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, attempts, claimed_by,
                created_at, claimed_at, done_at)
         select id, id, 'rag', 'embed', 'acme', '{}', 'done', 1, 'rag-embed/0#1',
                ended - n * interval '1 millisecond', ended - n * interval '0.5 millisecond', ended
           from (select bus.uuid_v7() as id, n, clock_timestamp() - interval '20 seconds' as ended
                   from generate_series(1, 100) as n) as numbered",
        // ended before the window
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, attempts, claimed_by,
                created_at, claimed_at, done_at)
         select id, id, 'rag', 'embed', 'acme', '{}', 'done', 1, 'rag-embed/0#1', ended, ended, ended
           from (select bus.uuid_v7() as id, clock_timestamp() - interval '2 hours' as ended
                   from generate_series(1, 11)) as old",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, attempts, claimed_by,
                created_at, claimed_at, done_at, error, last_error_at)
         select id, id, 'gateway', 'chat', 'acme', '{}', 'failed', 5, 'gateway-chat/0#1', ended, ended, ended,
                'Model ' || id || ' timed out after ' || n * 7 || ' ms' || E'\n' || 'at line ' || n, ended
           from (select bus.uuid_v7() as id, n, clock_timestamp() - n * interval '1 second' as ended
                   from generate_series(1, 25) as n) as dead",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, attempts, claimed_by,
                created_at, claimed_at, lease_until)
         select id, id, 'gateway', 'chat', 'acme', '{}', 'claimed', 1, 'gateway-chat/0#1',
                clock_timestamp() - interval '3 seconds', clock_timestamp() - interval '1 second',
                clock_timestamp() + interval '1 minute'
           from (select bus.uuid_v7() as id from generate_series(1, 3)) as held",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, created_at)
         select id, id, 'rag', 'embed', 'globex', '{}', clock_timestamp() - n * interval '10 seconds'
           from (select bus.uuid_v7() as id, n from generate_series(1, 4) as n) as waiting",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, created_at, retry_at)
         select id, id, 'rag', 'embed', 'globex', '{}', clock_timestamp() - interval '1 hour',
                clock_timestamp() + interval '1 hour'
           from (select bus.uuid_v7() as id from generate_series(1, 2)) as delayed",
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, done_at)
         select id, id, 'kg', 'build', 'acme', '{}', 'cancelled', clock_timestamp() - interval '1 hour'
           from (select bus.uuid_v7() as id from generate_series(1, 6)) as taken_back",
        "alter table public.agent_messages enable trigger user",
        "select bus.place(array(select id from public.agent_messages where status = 'queued'))",
        "insert into bus.claims (holder, lane, route, claimed_at, lease_until, remaining, ids, attempts)
         select claimed_by, bus.lane('gateway/chat/0'), 'gateway/chat/0', min(claimed_at), min(lease_until), count(*),
                array_agg(id), array_agg(attempts)
           from public.agent_messages where status = 'claimed' group by claimed_by",
        "insert into bus.dead_letters (id, failed_at, route, tenant)
         select id, done_at, 'gateway/chat/0', tenant from public.agent_messages where status = 'failed'",
    ];
    for statement in statements {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
}

/// Three agents of the registry: gateway-api active, rag-embed suspended, kg-builder registered.
pub(crate) async fn seed_agents(pool: &PgPool) {
    let registry = Registry::new(pool.clone());
    for (domain, name) in [("gateway", "gateway-api"), ("rag", "rag-embed"), ("kg", "kg-builder")] {
        let version = semver::Version::new(0, 1, 0);
        let location = detect_location(|_variable| None);
        let registration = Registration::new(domain, name, 0, version, location).unwrap();
        let membership = registry.register(&registration).await.unwrap();
        if name != "kg-builder" {
            registry.activate(membership.instance_id).await.unwrap();
        }
        if name == "rag-embed" {
            registry.suspend(membership.instance_id).await.unwrap();
        }
    }
}
