//! Starting, asking, hurting and ending a fleet.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use cogo_pg_local::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;

use crate::program::{Output, binaries_directory, run};

/// Ports of the fleet without offset, first and last.
const PORTS: (u16, u16) = (3000, 3100);
const PATIENCE: Duration = Duration::from_secs(60);

static NEXT_OFFSET: AtomicU16 = AtomicU16::new(0);

/// A fleet of its own; ended when dropped.
pub struct Fleet {
    directory: TempDir,
    binaries: PathBuf,
    offset: u16,
    http: reqwest::Client,
}

/// What the front door answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Media type.
    pub media_type: String,
    /// Body, null if it is not JSON.
    pub body: Value,
}

impl Fleet {
    /// Starts every process and waits until all are ready.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start() -> anyhow::Result<Self> {
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().context("build the HTTP client")?;
        let fleet = Self {
            directory: tempfile::Builder::new().prefix("cogo-e2e-").tempdir().context("make a directory")?,
            binaries: binaries_directory()?,
            offset: free_offset()?,
            http,
        };
        fleet.up()?;
        Ok(fleet)
    }

    /// `cogo up --detach` once more, after `cogo down`.
    ///
    /// # Errors
    /// When a process does not get ready.
    pub fn up(&self) -> anyhow::Result<()> {
        let offset = self.offset.to_string();
        self.cogo(&["up", "--detach", "--port-offset", &offset])?.ok()?;
        Ok(())
    }

    /// Runs `cogo` on this fleet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cogo(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let directory = self.data_directory();
        let directory = directory.to_str().context("the directory's name is not UTF-8")?;
        let all: Vec<&str> = arguments.iter().copied().chain(["--data-dir", directory]).collect();
        run(&self.binaries.join("cogo"), &all)
    }

    /// The directory that `cogo up` keeps its state in.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A directory for the files of the test.
    #[must_use]
    pub fn files(&self) -> &Path {
        self.directory.path()
    }

    /// Address of a process by the port that it has without offset.
    #[must_use]
    pub fn url(&self, port: u16, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", port + self.offset)
    }

    /// A client for requests that [`Fleet::call`] does not cover.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The embedded Postgres.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        Cluster::attach(&self.data_directory().join("postgres"))?.context("the embedded Postgres does not run")
    }

    /// A pool on the fleet's database.
    ///
    /// # Errors
    /// When the embedded Postgres does not run.
    pub fn pool(&self) -> anyhow::Result<PgPool> {
        Ok(cogo_db::connect(&cogo_db::PoolSettings::new(self.cluster()?.url("cogo"), "e2e"))?)
    }

    /// Process id of a process of the fleet.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> anyhow::Result<i32> {
        let status = self.cogo(&["status", "--json"])?.json()?;
        let processes = status["processes"].as_array().context("status lists no processes")?;
        let process = processes.iter().find(|process| process["name"] == name).context("no such process")?;
        let pid = process["pid"].as_i64().with_context(|| format!("{name} has no pid: {process}"))?;
        Ok(i32::try_from(pid)?)
    }

    /// Number of processes that the fleet consists of.
    ///
    /// # Errors
    /// When `cogo status` does not tell.
    pub fn size(&self) -> anyhow::Result<i64> {
        let status = self.cogo(&["status", "--json"])?.json()?;
        let processes = status["processes"].as_array().context("status lists no processes")?;
        Ok(i64::try_from(processes.len())?)
    }

    /// `kill -9` of a process of the fleet.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        kill_hard(self.pid(name)?)
    }

    /// `kill -9` of Postgres.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_postgres(&self) -> anyhow::Result<()> {
        kill_hard(self.cluster()?.postmaster_pid().context("Postgres has no pid")?)
    }

    /// Sends a task through the front door, again and again with the same key while the door is away; answers its id.
    ///
    /// # Errors
    /// When it is refused, or the door stays away.
    pub async fn submit(&self, intent: &str, payload: Value) -> anyhow::Result<String> {
        let key = uuid::Uuid::now_v7().to_string();
        let body = json!({"tenant": "default", "intent": intent, "payload": payload});
        let started = Instant::now();
        loop {
            let sent = self
                .http
                .post(self.url(3000, "/functions/v1/orchestrator-chat"))
                .header("Idempotency-Key", &key)
                .json(&body)
                .send()
                .await;
            match sent {
                Ok(response) if response.status() == 202 => {
                    let accepted: Value = response.json().await?;
                    return accepted["id"].as_str().map(str::to_owned).context("the answer has no id");
                }
                Ok(response) if response.status().as_u16() < 500 => bail!("refused: {}", response.text().await?),
                Ok(_) | Err(_) => ensure!(started.elapsed() < PATIENCE, "the front door stays away"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for the end of a task; survives a front door that is away for a while.
    ///
    /// # Errors
    /// When it does not end within a minute.
    pub async fn result(&self, id: &str) -> anyhow::Result<Value> {
        let started = Instant::now();
        loop {
            let path = format!("/tasks/{id}/result?wait_ms=5000");
            if let Ok(response) = self.http.get(self.url(3000, &path)).send().await
                && response.status() == 200
                && let Ok(result) = response.json::<Value>().await
            {
                return Ok(result);
            }
            ensure!(started.elapsed() < PATIENCE, "task {id} does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks a question through the front door and waits for the answer.
    ///
    /// # Errors
    /// When the task does not end well.
    pub async fn ask(&self, question: &str) -> anyhow::Result<Value> {
        let id = self.submit("ask", json!({ "question": question })).await?;
        let ended = self.result(&id).await?;
        ensure!(ended["status"] == "done", "{ended}");
        Ok(ended["result"].clone())
    }

    /// Sends a raw request to the front door.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> anyhow::Result<Answer> {
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let mut request = self.http.request(method, self.url(3000, path));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.context("the front door does not answer")?;
        let status = response.status().as_u16();
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
        let media_type = media_type.to_owned();
        let body = serde_json::from_str(&response.text().await?).unwrap_or(Value::Null);
        Ok(Answer { status, media_type, body })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // a test that failed has said why already
        let _ = self.cogo(&["down"]);
    }
}

fn kill_hard(pid: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("pid 0")?;
    kill_process(pid, Signal::KILL).context("kill -9")
}

/// An offset under which every port of the fleet is free.
fn free_offset() -> anyhow::Result<u16> {
    let process = u16::try_from(std::process::id() % 40)?;
    for _ in 0..100 {
        let turn = NEXT_OFFSET.fetch_add(1, Ordering::Relaxed);
        let offset = 10_000 + (process * 7 + turn) % 100 * 200;
        let free = |port| TcpListener::bind(("127.0.0.1", port + offset)).is_ok();
        if (PORTS.0..=PORTS.0 + 20).chain([PORTS.1]).all(free) {
            return Ok(offset);
        }
    }
    bail!("no free ports")
}
