//! Starts the example workers and says what they are to do.

use std::{
    path::{Path, PathBuf},
    process::{Command as Probe, Stdio},
    time::Duration,
};

use cogo_bus_core::{Bus, PartialPlace};
use cogo_contracts::NewMessage;
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use uuid::Uuid;

use crate::support::message;

/// Far longer than anything here takes, so that only a hang runs into it.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Work that no test waits for.
pub(super) const FOR_EVER_MS: u32 = 3_600_000;
/// A lease that no test outlives, for those in which something else must free a message.
pub(super) const LONG_LEASE: (&str, &str) = ("LEASE_MS", "600000");
/// A lease that ends while a test waits for it, but not while a busy machine stands still between two renewals.
pub(super) const SHORT_LEASE: (&str, &str) = ("LEASE_MS", "8000");
/// A poll that no test waits for, for those in which something else must wake the worker.
pub(super) const NO_POLL: (&str, &str) = ("BUS_POLL_MS", "600000");
/// What the connections of the workers are called.
pub(super) const THEIR_NAME: &str = "foreign worker";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Python,
    TypeScript,
}

/// The same test for each language.
macro_rules! in_both_languages {
    ($($test:ident),+ $(,)?) => {
        mod python {
            $(#[tokio::test] async fn $test() { Box::pin(super::$test(super::Language::Python)).await; })+
        }
        mod typescript {
            $(#[tokio::test] async fn $test() { Box::pin(super::$test(super::Language::TypeScript)).await; })+
        }
    };
}
pub(super) use in_both_languages;

impl Language {
    pub(super) const ALL: [Self; 2] = [Self::Python, Self::TypeScript];

    pub(super) fn instance(self) -> &'static str {
        match self {
            Self::Python => "python/0",
            Self::TypeScript => "typescript/0",
        }
    }

    /// A worker of test/work/0 with a long lease, four hands and no time of grace, unless the settings say otherwise.
    pub(super) fn start(self, url: &str, settings: &[(&str, &str)]) -> Child {
        self.run("handler", url, settings)
    }

    /// The same with a handler of batches.
    pub(super) fn start_batches(self, url: &str, settings: &[(&str, &str)]) -> Child {
        self.run("batch", url, settings)
    }

    /// The same as a member of the fleet.
    pub(super) fn start_agent(self, url: &str, settings: &[(&str, &str)]) -> Child {
        self.run("handler", url, &[&[("AGENT_DOMAIN", "test")], settings].concat())
    }

    fn run(self, source: &str, url: &str, settings: &[(&str, &str)]) -> Child {
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new(python());
                command.arg(format!("{source}.py")).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::TypeScript => {
                expect_node_packages();
                let mut command = Command::new("node");
                command.args(["--import", "tsx"]).arg(format!("{source}.ts"));
                command
            }
        };
        command.current_dir(examples()).kill_on_drop(true).env("DATABASE_URL", url).env("PGAPPNAME", THEIR_NAME);
        command.envs([("AGENT_SERVICE", "test"), ("AGENT_ROLE", "work"), ("HOLDER_ID", self.instance())]);
        command.envs([("BUS_POLL_MS", "500"), ("GRACE_MS", "0"), ("CONCURRENCY", "4"), ("BEAT_MS", "200"), LONG_LEASE]);
        command.envs(settings.iter().copied());
        command.spawn().unwrap()
    }
}

pub(super) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/workers")
}

/// The first Python that has psycopg 3.
fn python() -> &'static str {
    let has_psycopg = |python: &&str| {
        let probe = Probe::new(python).args(["-c", "import psycopg"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has_psycopg).expect(
        "the Python worker needs python3 with psycopg 3: apt-get install python3-psycopg, or pip install 'psycopg[binary]'",
    )
}

fn expect_node_packages() {
    let node = Probe::new("node").arg("--version").stdout(Stdio::null()).status();
    assert!(
        node.is_ok_and(|status| status.success()),
        "the TypeScript worker needs Node.js 18.19 or later: apt-get install nodejs npm"
    );
    let packages = examples().join("node_modules/tsx").is_dir() && examples().join("node_modules/postgres").is_dir();
    assert!(packages, "the TypeScript worker needs its packages: npm ci --ignore-scripts in examples/workers");
}

pub(super) fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Probe::new("kill").args([name, &pid]).status().unwrap().success());
}

/// Waits for the end of a process; its exit code, none if a signal ended it.
pub(super) async fn exit_code(child: &mut Child) -> Option<i32> {
    timeout(PATIENCE, child.wait()).await.expect("the process does not end").unwrap().code()
}

pub(super) fn order(payload: Value) -> NewMessage {
    let mut order = message(payload);
    // stamped, so that each end leaves an audit row
    order.payload["__assignment"] = json!({});
    order
}

pub(super) fn order_for(language: Language, payload: Value) -> NewMessage {
    let mut order = order(payload);
    order.target_instance = Some(language.instance().to_owned());
    order
}

/// One whose first attempt is as the orders say, and whose others just succeed.
pub(super) fn at_first(orders: Value) -> Value {
    json!({"attempts": {"1": orders}})
}

/// One whose first attempt never ends.
pub(super) fn hangs() -> Value {
    at_first(json!({"work_ms": FOR_EVER_MS}))
}

pub(super) async fn send(bus: &Bus, message: NewMessage) -> Uuid {
    bus.enqueue(&message).await.unwrap().id
}

/// Waits until a worker shows that it has begun, and answers its name.
pub(super) async fn begun(bus: &Bus, id: Uuid) -> String {
    timeout(PATIENCE, async {
        loop {
            if let Some(part) = bus.partials_after(id, PartialPlace::default(), 1).await.unwrap().first() {
                return part.content["holder"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("no worker begins")
}

/// Waits until the row of a message is as it is to be, and answers it.
pub(super) async fn until(bus: &Bus, id: Uuid, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waited = timeout(PATIENCE, async {
        loop {
            last = bus.message(id).await.unwrap().unwrap();
            if is_so(&last) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
    assert!(waited.is_ok(), "the message stays as it is: {last}");
    last
}

pub(super) async fn ended(bus: &Bus, id: Uuid) -> Value {
    until(bus, id, |row| !row["done_at"].is_null()).await
}

/// Sends a message that just succeeds, and waits for its end.
pub(super) async fn works(bus: &Bus) -> Value {
    let row = ended(bus, send(bus, order(json!({}))).await).await;
    assert_eq!(row["status"], "done", "{row}");
    row
}
