//! Rollouts of configuration: refused by one, applied by all, taken back when it harms.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cogo_registry_core::{ConfigWatcher, Configurable, Member, NotTakenBack, Proposal, Registry, RolloutState};
use cogo_test_support::database;
use serde_json::{Map, Value, json};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    fleet::events,
    heartbeat::{PAUSE, Running, spawn},
};

/// Takes any document but one that says otherwise, and remembers what it was given.
struct Part {
    given: Arc<Mutex<Vec<Value>>>,
    member: Member,
}

impl Configurable for Part {
    fn check(&mut self, document: &Value) -> Result<(), String> {
        if document["limit"] == json!(-1) { Err("limit must not be negative".to_owned()) } else { Ok(()) }
    }

    async fn apply(&mut self, document: &Value) -> Result<(), String> {
        if document["limit"] == json!(13) {
            return Err("out of luck".to_owned());
        }
        self.given.lock().unwrap().push(document.clone());
        self.member.vitals().set_ready(document["limit"] != json!(99));
        Ok(())
    }
}

struct Watching {
    running: Running,
    given: Arc<Mutex<Vec<Value>>>,
    token: CancellationToken,
    task: JoinHandle<Part>,
}

impl Watching {
    async fn start(registry: &Registry, name: &str, slot: u32) -> Self {
        let mut running = Running::start(registry, name, slot);
        running.member.vitals().set_ready(true);
        running.member.activate();
        running.until_active().await;
        let given = Arc::new(Mutex::new(Vec::new()));
        let part = Part { given: Arc::clone(&given), member: running.member.clone() };
        let watcher = ConfigWatcher::new(registry, &running.member, part, Duration::from_millis(20));
        let token = CancellationToken::new();
        let task = spawn(watcher.run(token.clone()));
        let watching = Self { running, given, token, task };
        watching.until(|given| !given.is_empty()).await;
        watching
    }

    async fn until(&self, there: impl Fn(&[Value]) -> bool) {
        let waiting = async {
            while !there(&self.given.lock().unwrap()) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(Duration::from_secs(60), waiting).await.expect("it is given");
    }

    fn last(&self) -> Value {
        self.given.lock().unwrap().last().unwrap().clone()
    }

    async fn stop(self) {
        self.token.cancel();
        self.task.await.unwrap();
        self.running.token.cancel();
        self.running.task.await.unwrap();
    }
}

fn document(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

async fn ends(registry: &Registry, version: i64) -> (RolloutState, Option<String>) {
    let ended = async {
        loop {
            let rollout = registry.rollout(version).await.unwrap().unwrap();
            if !matches!(rollout.state, RolloutState::Validating | RolloutState::Applying) {
                return (rollout.state, rollout.reason);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), ended).await.expect("a rollout ends")
}

#[tokio::test]
async fn a_document_that_all_can_take_is_given_to_those_whom_it_concerns() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (embed, other) =
        (Watching::start(&registry, "rag-embed", 0).await, Watching::start(&registry, "kg-builder", 0).await);
    assert_eq!(embed.last(), json!({}), "at the start: what holds");
    let proposal = Proposal::new("ops")
        .set("*", document(json!({"limit": 1, "general": true})))
        .set("rag-embed", document(json!({"limit": 2})))
        .within(30_000, 200);
    let version = registry.propose_config(&proposal).await.unwrap();
    assert!(registry.propose_config(&proposal).await.is_err(), "one at a time");
    assert_eq!(ends(&registry, version).await, (RolloutState::Live, None));
    assert_eq!(embed.last(), json!({"limit": 2, "general": true}));
    assert_eq!(other.last(), json!({"limit": 1, "general": true}));

    let removal = Proposal::new("ops").remove("rag-embed").within(30_000, 0);
    assert!(registry.propose_config(&removal.clone().if_still_at(0)).await.is_err(), "it has changed since");
    let version = registry.propose_config(&removal).await.unwrap();
    assert_eq!(ends(&registry, version).await, (RolloutState::Live, None));
    assert_eq!(embed.last(), json!({"limit": 1, "general": true}));
    assert_eq!(other.given.lock().unwrap().len(), 2, "it was not concerned");
    let late = Watching::start(&registry, "rag-embed", 1).await;
    assert_eq!(late.last(), json!({"limit": 1, "general": true}));
    for watching in [embed, other, late] {
        watching.stop().await;
    }
}

#[tokio::test]
async fn a_document_that_one_refuses_reaches_nobody() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let watching = [Watching::start(&registry, "rag-embed", 0).await, Watching::start(&registry, "rag-embed", 1).await];
    let proposal = Proposal::new("ops").set("rag-embed", document(json!({"limit": -1})));
    let version = registry.propose_config(&proposal).await.unwrap();
    let (state, reason) = ends(&registry, version).await;
    assert_eq!(state, RolloutState::Refused);
    assert!(reason.as_deref().unwrap().ends_with("limit must not be negative"), "{reason:?}");
    assert!(registry.config().await.unwrap().is_empty());
    for watching in watching {
        assert_eq!(*watching.given.lock().unwrap(), [json!({})]);
        watching.stop().await;
    }
}

#[tokio::test]
async fn a_document_that_harms_is_taken_back() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let watching = Watching::start(&registry, "rag-embed", 0).await;
    let good = Proposal::new("ops").set("rag-embed", document(json!({"limit": 5}))).within(30_000, 0);
    let version = registry.propose_config(&good).await.unwrap();
    assert_eq!(ends(&registry, version).await.0, RolloutState::Live);
    for (bad, why) in [(13, "out of luck"), (99, "is no longer ready")] {
        // it would settle for so long that the test could not end without the harm being seen
        let proposal = Proposal::new("ops").set("rag-embed", document(json!({"limit": bad}))).within(60_000, 3_600_000);
        let version = registry.propose_config(&proposal).await.unwrap();
        let (state, reason) = ends(&registry, version).await;
        assert_eq!(state, RolloutState::RolledBack);
        assert!(reason.as_deref().unwrap().ends_with(why), "{reason:?}");
        assert_eq!(registry.config().await.unwrap(), [("rag-embed".to_owned(), json!({"limit": 5}))]);
        watching.until(|given| given.last() == Some(&json!({"limit": 5}))).await;
        let ready = async {
            let beats = "select b.ready from registry.beats b";
            while !sqlx::query_scalar::<_, bool>(beats).fetch_one(&database.pool).await.unwrap() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(Duration::from_secs(60), ready).await.expect("it is ready again");
    }
    let told: Vec<String> =
        sqlx::query_scalar("select e.kind from public.bus_events e where e.kind like 'config%' order by e.id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(told[told.len() - 3..], ["config_validating", "config_applying", "config_rolled_back"]);
    assert!(!events(&database.pool).await.is_empty());
    watching.stop().await;
}

#[tokio::test]
async fn a_watcher_that_does_not_answer_ends_the_rollout() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let watching = Watching::start(&registry, "rag-embed", 0).await;
    watching.token.cancel();
    let (given, running) = (watching.given, watching.running);
    watching.task.await.unwrap();
    let proposal = Proposal::new("ops").set("rag-embed", document(json!({"limit": 1}))).within(300, 0);
    let version = registry.propose_config(&proposal).await.unwrap();
    assert_eq!(ends(&registry, version).await, (RolloutState::Refused, Some("1 watchers gave no answer".to_owned())));
    assert_eq!(given.lock().unwrap().len(), 1);
    running.token.cancel();
    running.task.await.unwrap();

    // with nobody to ask, it holds at once, and one can still stop a rollout by hand
    let version = registry.propose_config(&proposal.within(30_000, 3_600_000)).await.unwrap();
    assert_eq!(registry.rollout(version).await.unwrap().unwrap().state, RolloutState::Applying);
    assert!(registry.roll_back_config(version, "ops", "changed my mind").await.unwrap());
    assert!(!registry.roll_back_config(version, "ops", "again").await.unwrap());
    assert_eq!(ends(&registry, version).await.0, RolloutState::RolledBack);
    assert!(registry.config().await.unwrap().is_empty());
    assert!(registry.rollout(version + 100).await.unwrap().is_none());
}

#[tokio::test]
async fn a_rollout_tells_what_it_changed_and_who_answered() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let watching = Watching::start(&registry, "rag-embed", 0).await;
    let first = Proposal::new("ops").set("rag-embed", document(json!({"limit": 1}))).note("first").within(30_000, 0);
    let first = registry.propose_config(&first).await.unwrap();
    assert_eq!(ends(&registry, first).await.0, RolloutState::Live);
    let refused = Proposal::new("ops").set("rag-embed", document(json!({"limit": -1})));
    let refused = registry.propose_config(&refused).await.unwrap();
    assert_eq!(ends(&registry, refused).await.0, RolloutState::Refused);

    let records = registry.rollouts(10).await.unwrap();
    let [newest, oldest] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((newest.rollout.version, oldest.rollout.version), (refused, first));
    let answers = |record: &cogo_registry_core::RolloutRecord| -> Vec<String> {
        record.answers.iter().map(|it| it.answer.clone()).collect()
    };
    assert_eq!(
        (answers(oldest), answers(newest)),
        (vec!["valid".to_owned(), "applied".to_owned()], vec!["invalid".to_owned()])
    );
    assert!(oldest.answers.iter().all(|answer| answer.holder.starts_with("rag-embed/0#")));
    assert_eq!(newest.answers[0].detail.as_deref(), Some("limit must not be negative"));
    assert_eq!(Value::Object(oldest.changes.clone()), json!({"rag-embed": {"limit": 1}}));
    assert_eq!(Value::Object(oldest.before.clone()), json!({"rag-embed": null}));
    assert_eq!((oldest.note.as_deref(), oldest.awaited.len()), (Some("first"), 0));
    assert!(registry.rollout_record(first + 1000).await.unwrap().is_none());
    watching.stop().await;
}

#[tokio::test]
async fn what_held_before_a_rollout_holds_again_if_nobody_changed_it_since() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let live = async |proposal: Proposal| {
        let version = registry.propose_config(&proposal.within(30_000, 0)).await.unwrap();
        assert_eq!(ends(&registry, version).await.0, RolloutState::Live);
        version
    };
    let set = |limit: i64| Proposal::new("ops").set("rag-embed", document(json!({"limit": limit})));
    let (one, two) = (live(set(1)).await, live(set(2)).await);
    live(Proposal::new("ops").set("kg-builder", document(json!({"limit": 9})))).await;
    let overtaken = registry.taking_back(one, "ops").await.unwrap_err();
    assert!(matches!(overtaken, NotTakenBack::Overtaken { by, .. } if by == two), "{overtaken:?}");
    assert!(matches!(registry.taking_back(999, "ops").await, Err(NotTakenBack::NoSuchRollout { .. })));
    let late = registry.taking_back(two, "ops").await.unwrap();
    live(registry.taking_back(two, "ops").await.unwrap()).await;
    let held = registry.config().await.unwrap();
    assert_eq!(held, [("kg-builder".to_owned(), json!({"limit": 9})), ("rag-embed".to_owned(), json!({"limit": 1}))]);
    assert!(registry.propose_config(&late).await.is_err(), "it was made for another version");

    let under_way = registry.propose_config(&set(3).within(30_000, 3_600_000)).await.unwrap();
    assert_eq!(registry.rollout_under_way().await.unwrap().unwrap().version, under_way);
    assert!(matches!(registry.taking_back(under_way, "ops").await, Err(NotTakenBack::DoesNotHold { .. })));
    assert!(registry.roll_back_config(under_way, "ops", "no").await.unwrap());
    assert_eq!(registry.rollout_under_way().await.unwrap(), None);
}
