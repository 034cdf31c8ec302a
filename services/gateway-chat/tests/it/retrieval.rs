//! Questions that passages answer, without a model.

use std::sync::Arc;

use cogo_bus_core::Bus;
use cogo_contracts::{Assignment, ChatMode, ChatRequest};
use cogo_gateway_chat::{Chat, Guarded, Live, MAX_QUESTION_CHARS, Parts, Search, Settings, Writers, Writing};
use cogo_model_client::{Settings as ModelSettings, scripted::ScriptedModel};
use cogo_service_runtime::{Dependency, DependencySettings};
use tokio_util::sync::CancellationToken;

use crate::support::{asked, bench, check_citations, fixture, indexed, question};

#[tokio::test]
async fn question_about_a_definition_is_answered_by_its_lines() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("What does `is_expired` do?").await;
    assert_eq!(reply.mode, ChatMode::Extractive, "{}", reply.answer);
    check_citations(&reply, &fixture());
    let first = &reply.citations[0];
    assert_eq!(first.path, "src/lease.rs");
    assert!(first.text.contains("Whether the courier was silent for too long"), "{}", first.text);
    assert!(reply.answer.contains(&first.text));
    let degraded = reply.degraded.unwrap();
    assert!(degraded.contains("no chat model") && degraded.contains("no embedding model"), "{degraded}");
    assert_eq!(reply.usage, cogo_contracts::Usage::default());
}

#[tokio::test]
async fn question_about_prose_is_answered_by_its_paragraph() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("When does the night watchman lock the cold store?").await;
    assert_eq!(reply.mode, ChatMode::Extractive, "{}", reply.answer);
    check_citations(&reply, &fixture());
    assert!(reply.citations[0].text.contains("22:30"));
}

#[tokio::test]
async fn question_without_evidence_is_not_answered() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("How do submarines recharge their batteries under ice?").await;
    assert_eq!(reply.mode, ChatMode::Abstain, "{}", reply.answer);
    assert!(reply.citations.is_empty());
    assert!(reply.answer.starts_with("I found no evidence for an answer in depot."), "{}", reply.answer);
    assert!(reply.answer.contains("submarines"), "{}", reply.answer);
}

#[tokio::test]
async fn embedding_model_that_is_away_costs_the_vectors_and_not_the_answer() {
    let database = indexed().await;
    let (pool, bus) = (database.pool.clone(), Bus::new(database.pool.clone()));
    let model = ModelSettings { embedding_model: "vectors-1".to_owned(), ..ModelSettings::default() };
    let guard = Dependency::alone("vectors", &DependencySettings::default()).unwrap();
    let parts = Parts {
        search: Arc::new(Search::with_model(pool.clone(), model, guard)),
        writers: Arc::new(Writers::new(Writing {
            model: None::<Guarded<ScriptedModel>>,
            limits: Settings::default().writing_limits(),
        })),
        live: Arc::new(Live::new(bus, CancellationToken::new())),
        pool,
    };
    let request = question("What does `is_expired` do?");
    let reply = Chat::new(parts).answer(&request, &asked(&Assignment::default())).await.unwrap();
    assert_eq!(reply.mode, ChatMode::Extractive);
    check_citations(&reply, &fixture());
    let degraded = reply.degraded.unwrap();
    assert!(degraded.contains("the embedding model did not answer"), "{degraded}");
}

#[tokio::test]
async fn tenant_without_an_index_is_told_how_to_make_one() {
    let database = indexed().await;
    let assignment = Assignment::default();
    let other_tenant = cogo_gateway_chat::Asked { tenant: "other", ..asked(&assignment) };
    for text in ["What does `is_expired` do?", "who imports `Lease`?"] {
        let reply = bench(&database.pool, None).chat.answer(&question(text), &other_tenant).await.unwrap();
        assert_eq!(reply.mode, ChatMode::Abstain);
        assert!(reply.answer.contains("cogo index PATH") && reply.citations.is_empty(), "{}", reply.answer);
    }
}

#[tokio::test]
async fn unknown_collection_is_rejected_with_the_known_ones() {
    let database = indexed().await;
    let request = ChatRequest { question: "what?".to_owned(), collection: Some("depto".to_owned()) };
    let reason = bench(&database.pool, None).rejection(&request).await;
    assert_eq!(reason, "There is no collection \"depto\"; there are: depot");
}

#[tokio::test]
async fn unusable_questions_are_rejected_with_a_reason() {
    let database = cogo_test_support::database().await;
    let bench = bench(&database.pool, None);
    for text in ["", " \n\t ", "\0\0"] {
        assert_eq!(bench.rejection(&question(text)).await, "The question is empty", "{text:?}");
    }
    let reason = bench.rejection(&question(&"ä".repeat(MAX_QUESTION_CHARS + 1))).await;
    assert_eq!(reason, "The question has 4001 characters, at most 4000 are read");
    let longest = question(&"ä".repeat(MAX_QUESTION_CHARS));
    assert!(bench.chat.answer(&longest, &asked(&Assignment::default())).await.is_ok());
}

#[tokio::test]
async fn hostile_questions_get_a_reply() {
    let database = indexed().await;
    let bench = bench(&database.pool, None);
    for text in [
        "who imports `a\0b`?",
        "who imports `%' or 1=1 --`?",
        "what breaks if ../../etc/passwd changes?",
        "????",
        "\u{202e}who imports `Lease`?",
        "🦀",
    ] {
        let reply = bench.ask(text).await;
        assert!(!reply.answer.is_empty(), "{text:?}");
    }
}
