//! `cogo config` with processes that take settings, refuse them, or are harmed by them.

use std::time::Duration;

use cogo_registry_core::{ConfigWatcher, Configurable, Heartbeat, HeartbeatSettings, Member, Registry};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{Cogo, eventually, registration};

/// Takes any limit but a negative one, and is not ready with 99.
struct Part(Member);

impl Configurable for Part {
    fn check(&mut self, document: &Value) -> Result<(), String> {
        if document["limit"].as_i64() < Some(0) && document["limit"].is_i64() {
            return Err("limit must not be negative".to_owned());
        }
        Ok(())
    }

    async fn apply(&mut self, document: &Value) -> Result<(), String> {
        self.0.vitals().set_ready(document["limit"] != json!(99));
        Ok(())
    }
}

/// A process of the fleet that heeds settings.
struct Process {
    leave: CancellationToken,
    tasks: TaskTracker,
}

impl Process {
    fn start(registry: &Registry, name: &str, slot: u32) -> Self {
        let registration = registration("rag", name, slot);
        let fast = HeartbeatSettings { interval: Duration::from_millis(100), ..HeartbeatSettings::default() };
        let (heartbeat, member) = Heartbeat::new(registry, registration, fast);
        let (leave, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(heartbeat.run(leave.clone()));
        member.vitals().set_ready(true);
        member.activate();
        let watcher = ConfigWatcher::new(registry, &member, Part(member.clone()), Duration::from_millis(20));
        tasks.spawn(watcher.run(leave.clone()));
        Self { leave, tasks }
    }

    async fn stop(self) {
        self.leave.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Two processes that heed settings, as the registry sees them.
async fn fleet(registry: &Registry, pool: &sqlx::PgPool) -> [Process; 2] {
    let processes = [Process::start(registry, "rag-embed", 0), Process::start(registry, "kg-builder", 0)];
    eventually("both heed settings and are ready", async || {
        let ready = "select count(*) from registry.config_watchers w join registry.beats b
                       on b.instance_id = w.instance_id where b.ready";
        sqlx::query_scalar::<_, i64>(ready).fetch_one(pool).await.unwrap() == 2
    })
    .await;
    processes
}

#[tokio::test]
async fn settings_are_rolled_out_followed_and_rolled_back() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let processes = fleet(&registry, &database.pool).await;
    let cogo = Cogo::on(&database.url);
    assert_eq!(cogo.run(&["config", "show", "--json"]).await.expect(0).json()["documents"], json!({}));
    cogo.run(&["config", "history"]).await.expect(0);

    let file = cogo.file("first.json", r#"{"rag-embed": {"limit": 1}}"#).to_string_lossy().into_owned();
    let words = ["config", "propose", &file, "--settle", "0", "--note", "n1", "--author", "me", "--json"];
    let first = cogo.run(&words).await.expect(0).json();
    assert_eq!((&first["state"], &first["author"], &first["note"]), (&json!("live"), &json!("me"), &json!("n1")));
    let answers: Vec<&Value> = first["answers"].as_array().unwrap().iter().map(|answer| &answer["answer"]).collect();
    assert_eq!(answers, ["valid", "applied"], "only those whom it concerns");
    let file = cogo.file("second.toml", "[\"*\"]\nlimit = 2\n").to_string_lossy().into_owned();
    let second = cogo.run(&["config", "propose", &file, "--settle", "0"]).await.expect(0);
    assert!(second.stdout.ends_with("is live, applied by 2 agents\n"), "{second:?}");

    let shown = cogo.run(&["config", "show", "--json"]).await.expect(0).json();
    assert_eq!(shown["documents"], json!({"*": {"limit": 2}, "rag-embed": {"limit": 1}}));
    let version = first["version"].to_string();
    let one = cogo.run(&["config", "show", &version]).await.expect(0).stdout;
    for expected in ["is live since", "by me", "note: n1", "rag-embed: {\"limit\":1} (before null)", "rag-embed/0#"] {
        assert!(one.contains(expected), "{expected}: {one}");
    }
    let back = cogo.run(&["config", "rollback", &version, "--reason", "slower", "--settle", "0", "--json"]).await;
    assert_eq!(back.expect(0).json()["note"], json!(format!("takes back rollout {version}: slower")));
    let shown = cogo.run(&["config", "show", "--json"]).await.expect(0).json();
    assert_eq!(shown["documents"], json!({"*": {"limit": 2}}));
    cogo.run(&["config", "rollback", &version]).await.expect(4);
    let history = cogo.run(&["config", "history", "--json"]).await.expect(0).json();
    assert_eq!(history.as_array().unwrap().len(), 3);
    let removed = cogo.run(&["config", "propose", "--remove", "*", "--settle", "0"]).await.expect(0);
    assert!(removed.stdout.contains("is live"), "{removed:?}");
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn settings_that_are_refused_or_harm_say_why_and_change_nothing() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let processes = fleet(&registry, &database.pool).await;
    let cogo = Cogo::on(&database.url);
    let with_input = async |document: &str, more: &[&str]| {
        cogo.run_with_input(&[&["config", "propose", "-"], more].concat(), document).await
    };
    let refused = with_input(r#"{"rag-embed": {"limit": -1}}"#, &["--json"]).await.expect(1).problem();
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("was refused") && detail.ends_with("limit must not be negative"), "{refused}");
    // it would settle for so long that the command could not end without the harm being seen
    let harmed = with_input(r#"{"*": {"limit": 99}}"#, &["--settle", "3600"]).await.expect(1);
    assert!(harmed.stderr.contains("was taken back") && harmed.stderr.contains("is no longer ready"), "{harmed:?}");
    assert_eq!(cogo.run(&["config", "show", "--json"]).await.expect(0).json()["documents"], json!({}));
    let history = cogo.run(&["config", "history"]).await.expect(0).stdout;
    assert!(history.contains("refused") && history.contains("rolled_back"), "{history}");

    // one at a time, and by hand
    let begun = with_input(r#"{"rag-embed": {"limit": 3}}"#, &["--settle", "3600", "--no-wait", "--json"]).await;
    let version = begun.expect(0).json()["version"].to_string();
    let another = with_input(r#"{"rag-embed": {"limit": 4}}"#, &[]).await.expect(4);
    assert!(another.stderr.contains("Another rollout is under way"), "{another:?}");
    let under_way = cogo.run(&["config", "show", "--json"]).await.expect(0).json();
    assert_eq!(under_way["under_way"]["version"].to_string(), version);
    let stopped =
        cogo.run(&["config", "rollback", "--reason", "no", "--author", "me", "--json"]).await.expect(0).json();
    assert!(stopped["reason"].as_str().unwrap().ends_with("me: no"), "{stopped}");
    for (words, code) in [
        (&["config", "rollback"][..], 3),
        (&["config", "rollback", &version], 4),
        (&["config", "show", "999"], 3),
        (&["config", "propose", "--remove", "Rag"], 2),
        (&["config", "propose", "--remove", "rag-embed", "--if-still-at", "0"], 4),
        (&["config", "propose", "/no/such/file"], 1),
        (&["config", "propose"], 2),
    ] {
        cogo.run(words).await.expect(code);
    }
    with_input("[1]", &[]).await.expect(2);
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn settings_for_nobody_who_runs_hold_for_those_who_start() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let proposed =
        cogo.run_with_input(&["config", "propose", "-", "--settle", "1"], r#"{"rag-embed": {"limit": 1}}"#).await;
    let proposed = proposed.expect(0);
    assert!(proposed.stderr.contains("no running process is concerned"), "{proposed:?}");
    assert_eq!(cogo.run(&["config", "show"]).await.expect(0).json(), json!({"rag-embed": {"limit": 1}}));
}
