//! The supervision tree of the whole fleet: one crash stays one, pools grow and shrink, agents pause.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cogo_e2e::{Fleet, binaries_directory};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// What a killed process may take to run again, as the product promises it.
const BACK_WITHIN: Duration = Duration::from_secs(2);

fn json(fleet: &Fleet, arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    fleet.cogo(&all).unwrap().ok().unwrap().json().unwrap()
}

/// Every instance of the tree.
fn instances(tree: &Value) -> Vec<Value> {
    if tree["kind"] == "instance" {
        return vec![tree.clone()];
    }
    tree["children"].as_array().unwrap().iter().flat_map(instances).collect()
}

fn instance(fleet: &Fleet, path: &str) -> Value {
    let found = instances(&json(fleet, &["tree"])).into_iter().find(|instance| instance["path"] == path);
    found.unwrap_or_else(|| panic!("no {path}"))
}

/// The living agent of a slot, as the registry has it.
fn agent(fleet: &Fleet, name: &str, slot: i64) -> Option<Value> {
    let agents = json(fleet, &["agents"]);
    let mut living = agents.as_array().unwrap().iter();
    living.find(|agent| agent["name"] == name && agent["slot"] == slot).cloned()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_stays_one_and_a_pool_grows_pauses_and_shrinks() {
    let fleet = Fleet::start().unwrap();
    let before = instances(&json(&fleet, &["tree"]));
    assert!(before.len() > 5 && before.iter().all(|instance| instance["state"] == "running"), "{before:?}");

    let victim = "executor/executor-dispatcher/0";
    // a machine may stand still while one is away, but not each time; the pauses before it is started again grow
    let (mut kills, mut away) = (0, Vec::new());
    while away.last().is_none_or(|last| *last >= BACK_WITHIN) {
        assert!(kills < 3, "it was away for {away:?}");
        kills += 1;
        let killed = Instant::now();
        fleet.kill("executor-dispatcher").unwrap();
        let mut up_for = Duration::ZERO;
        eventually("the process runs again", || {
            let now = instance(&fleet, victim);
            up_for = now["uptime_s"].as_f64().map_or(Duration::ZERO, Duration::from_secs_f64);
            now["state"] == "running" && now["restarts"] == kills
        })
        .await;
        // how long it took the test to hear of it is no part of that
        away.push(killed.elapsed().saturating_sub(up_for));
    }
    let after = instances(&json(&fleet, &["tree"]));
    for (then, now) in before.iter().zip(&after) {
        let is_victim = then["path"] == victim;
        assert_eq!((now["pid"] != then["pid"], now["restarts"] == kills), (is_victim, is_victim), "{now}");
    }
    assert_eq!(instance(&fleet, victim)["last_exit"]["reason"], "signal 9");

    // a second instance owns a slot of its own, works and can be paused alone
    json(&fleet, &["scale", "gateway-chat", "2"]);
    let second = agent(&fleet, "gateway-chat", 1).expect("it is registered once it is ready");
    assert_eq!(second["state"], "active", "{second}");
    json(&fleet, &["suspend", "gateway-chat/1"]);
    assert_eq!(agent(&fleet, "gateway-chat", 1).unwrap()["state"], "suspended");
    fleet.ask("Who answers while one is suspended?").await.unwrap();
    json(&fleet, &["resume", "gateway-chat/1"]);
    assert_eq!(agent(&fleet, "gateway-chat", 0).unwrap()["state"], "active");

    // the one that is taken away leaves in good order
    json(&fleet, &["scale", "gateway-chat", "1"]);
    assert_eq!(agent(&fleet, "gateway-chat", 1), None);
    let ended = json(&fleet, &["agents", "--ended", "10"]);
    let left = ended.as_array().unwrap().iter().find(|agent| agent["name"] == "gateway-chat" && agent["slot"] == 1);
    assert_ne!(left.expect("it was there")["end_reason"], "dead");
    fleet.ask("Does the first one still answer?").await.unwrap();
}

/// A process that is ended with the test.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_lost_its_slot_stays_down_until_it_is_restarted() {
    let fleet = Fleet::start().unwrap();
    let mut stranger = Command::new(binaries_directory().unwrap().join("cogo-gateway-chat"));
    stranger.env("DATABASE_URL", fleet.cluster().unwrap().url("cogo")).env("COGO_PORT", "0");
    let stranger = Stranger(stranger.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let path = "gateway/gateway-chat/0";
    eventually("the first one gives way", || instance(&fleet, path)["state"] == "stopped").await;
    let loser = instance(&fleet, path);
    assert_eq!((&loser["last_exit"]["kind"], &loser["restarts"]), (&"final".into(), &0.into()), "{loser}");
    fleet.ask("Who answers now?").await.unwrap();

    drop(stranger);
    json(&fleet, &["restart", "gateway-chat"]);
    assert_eq!(instance(&fleet, path)["state"], "running");
    fleet.ask("And now?").await.unwrap();
}
