//! An agent of level 3 outside of the fleet, below the real sandbox manager: joins, is killed, comes back, loses its
//! parent for a while, and is drained.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cogo_e2e::{Fleet, binaries_directory};
use serde_json::Value;

/// Port of the sandbox manager without offset.
const PARENT: u16 = 3013;
const NAME: &str = "figma-worker";
/// A child is gone 30 s after its connection is; this is far more, for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(150);

/// A running `cogo child`; ended with the test.
struct Agent {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    fn start(fleet: &Fleet, key: &str) -> Self {
        let parent = fleet.url(PARENT, "/children").replace("http://", "ws://");
        let mut command = Command::new(binaries_directory().unwrap().join("cogo"));
        command.args(["child", "--json", "--parent", &parent, "--name", NAME, "--capability", "figma-export"]);
        command.env("COGO_AGENT_KEY", key).env_remove("DATABASE_URL").stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next event; what is told of tries in between is left out.
    fn event(&mut self) -> Value {
        loop {
            let line = self.lines.next().expect("it has not ended").unwrap();
            let told: Value = serde_json::from_str(&line).unwrap();
            if told.get("trouble").is_none() {
                return told;
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn json(fleet: &Fleet, arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    fleet.cogo(&all).unwrap().ok().unwrap().json().unwrap()
}

fn listed(fleet: &Fleet) -> Option<Value> {
    let agents = json(fleet, &["agents"]);
    agents.as_array().unwrap().iter().find(|agent| agent["name"] == NAME).cloned()
}

/// Why the newest of its runs that are over has ended.
fn end_reason(fleet: &Fleet) -> String {
    let ended = json(fleet, &["agents", "--ended", "20"]);
    let last = ended.as_array().unwrap().iter().find(|agent| agent["name"] == NAME).cloned();
    last.expect("a run has ended")["end_reason"].as_str().unwrap().to_owned()
}

/// The agents of level 3 in the tree, by path.
fn outside(tree: &Value) -> Vec<String> {
    let own = (tree["kind"] == "external").then(|| tree["path"].as_str().unwrap().to_owned());
    own.into_iter().chain(tree["children"].as_array().unwrap().iter().flat_map(outside)).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_of_level_3_joins_vanishes_comes_back_outlives_its_parent_and_is_drained() {
    let fleet = Fleet::start().unwrap();
    let issued = fleet.cogo(&["key", "issue", NAME]).unwrap().ok().unwrap();
    let key = issued.stdout.trim();
    let mut child = Agent::start(&fleet, key);
    assert_eq!(child.event()["event"], "connected");
    let agent = listed(&fleet).expect("it is in the registry");
    assert_eq!((&agent["level"], &agent["parent"]), (&3.into(), &"sandbox-manager/0".into()), "{agent}");
    assert_eq!((&agent["state"], &agent["epoch"]), (&"active".into(), &1.into()), "{agent}");
    assert_eq!(outside(&json(&fleet, &["tree"])), ["sandbox/sandbox-manager/0/figma-worker/0"]);

    // kill -9: nobody is sent there any more at once, and it is gone when its time of grace is over
    child.process.kill().unwrap();
    eventually("nobody is sent there", || listed(&fleet).is_none_or(|agent| agent["state"] == "suspended")).await;
    eventually("it is gone", || listed(&fleet).is_none()).await;
    assert_eq!(end_reason(&fleet), "connection gone");

    let mut child = Agent::start(&fleet, key);
    let connected = child.event();
    assert_eq!((&connected["event"], &connected["epoch"]), (&"connected".into(), &2.into()));

    // its parent dies and is started again: the child finds it by itself, as another run of its slot
    fleet.kill("sandbox-manager").unwrap();
    let back = loop {
        let told = child.event();
        if told["event"] == "reconnected" {
            break told;
        }
    };
    assert_eq!(back["epoch"], 3, "{back}");
    let agent = listed(&fleet).expect("it is in the registry again");
    assert_eq!((&agent["state"], &agent["parent"]), (&"active".into(), &"sandbox-manager/0".into()), "{agent}");

    json(&fleet, &["drain", NAME]);
    assert!(child.process.wait().unwrap().success(), "one that was drained has ended well");
    eventually("it has left", || listed(&fleet).is_none()).await;
    assert_eq!(end_reason(&fleet), "drained");
}
