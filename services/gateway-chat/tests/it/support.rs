//! An indexed tree, a chat over it, and a check that citations show what stands in the files.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cogo_bus_core::Bus;
use cogo_contracts::{Assignment, ChatReply, ChatRequest};
use cogo_gateway_chat::{Asked, Chat, Guarded, Live, Parts, Search, Settings, Writers, Writing, WritingLimits};
use cogo_kg_core::{BuildTarget, build};
use cogo_model_client::scripted::ScriptedModel;
use cogo_rag_core::sync;
use cogo_service_runtime::{Dependency, DependencySettings, HandlerError};
use cogo_test_support::TestDatabase;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const TENANT: &str = "acme";
pub(crate) const COLLECTION: &str = "depot";

pub(crate) fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/depot")
}

/// A database with the fixture indexed under [`COLLECTION`], and its graph built.
pub(crate) async fn indexed() -> TestDatabase {
    let database = cogo_test_support::database().await;
    index(&database.pool, COLLECTION, &fixture()).await;
    database
}

pub(crate) async fn index(pool: &PgPool, collection: &str, root: &Path) {
    let report = sync(pool, TENANT, collection, root, |_| {}).await.unwrap();
    assert!(report.chunks > 0 && report.failed == 0, "{report:?}");
    let target =
        BuildTarget { tenant: TENANT.to_owned(), repo: collection.to_owned(), root: root.to_owned(), revision: None };
    build(pool, &target, &(Arc::new(|_| {}) as _)).await.unwrap();
}

/// A chat and the places at which its answers can be followed.
pub(crate) struct Bench {
    pub(crate) chat: Chat<ScriptedModel>,
    pub(crate) live: Arc<Live>,
}

pub(crate) fn bench(pool: &PgPool, model: Option<ScriptedModel>) -> Bench {
    bench_with(pool, model, Settings::default().writing_limits())
}

pub(crate) fn bench_with(pool: &PgPool, model: Option<ScriptedModel>, limits: WritingLimits) -> Bench {
    let live = Arc::new(Live::new(Bus::new(pool.clone()), CancellationToken::new()));
    let search = Arc::new(Search::without_model(pool.clone()));
    let guard = Dependency::alone("scripted", &DependencySettings::default()).unwrap();
    let model = model.map(|model| Guarded { model, guard });
    let writers = Arc::new(Writers::new(Writing { model, limits }));
    let parts = Parts { pool: pool.clone(), search, writers, live: Arc::clone(&live) };
    Bench { chat: Chat::new(parts), live }
}

pub(crate) fn question(text: &str) -> ChatRequest {
    ChatRequest { question: text.to_owned(), collection: None }
}

/// The frame of a question without limits.
pub(crate) fn asked(assignment: &Assignment) -> Asked<'_> {
    let message = Uuid::now_v7();
    Asked { message, task: message, tenant: TENANT, assignment, deadline: None, token: CancellationToken::new() }
}

impl Bench {
    pub(crate) async fn ask(&self, text: &str) -> ChatReply {
        self.ask_under(text, &Assignment::default(), None).await
    }

    pub(crate) async fn ask_under(&self, text: &str, assignment: &Assignment, time: Option<Duration>) -> ChatReply {
        let mut asked = asked(assignment);
        asked.deadline = time.map(|time| Instant::now() + time);
        self.chat.answer(&question(text), &asked).await.unwrap()
    }

    /// The reason for which a question is rejected.
    pub(crate) async fn rejection(&self, request: &ChatRequest) -> String {
        match self.chat.answer(request, &asked(&Assignment::default())).await {
            Err(HandlerError::Reject { source }) => format!("{source:#}"),
            other => panic!("not rejected: {other:?}"),
        }
    }
}

/// Every citation shows exactly what stands in the file of the tree, and names the file's hash.
pub(crate) fn check_citations(reply: &ChatReply, root: &Path) {
    for citation in &reply.citations {
        let bytes = fs::read(root.join(&citation.path)).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let (start, end) = (citation.start as usize, citation.end as usize);
        assert!(start >= 1 && start <= end, "{citation:?}");
        let lines: Vec<&str> = text.lines().skip(start - 1).take(end + 1 - start).collect();
        assert_eq!(lines.join("\n"), citation.text, "{}:{start}-{end}", citation.path);
        let mut hash = String::new();
        for byte in Sha256::digest(&bytes) {
            write!(hash, "{byte:02x}").unwrap();
        }
        assert_eq!(hash, citation.sha256);
    }
    for number in 1..=reply.citations.len() {
        assert!(reply.answer.contains(&format!("[{number}]")), "[{number}] is not in {}", reply.answer);
    }
    assert!(!reply.answer.contains(&format!("[{}]", reply.citations.len() + 1)), "{}", reply.answer);
}

/// `path:start` of every citation.
pub(crate) fn cited(reply: &ChatReply) -> Vec<String> {
    reply.citations.iter().map(|citation| format!("{}:{}", citation.path, citation.start)).collect()
}
