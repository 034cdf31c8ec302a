//! A workload around one database: clients in processes of their own, their journals, and the verdict at the end.

use std::{
    collections::HashSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use cogo_bus_core::{ClaimRequest, Completion};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};
use uuid::Uuid;

use crate::{
    ActorSettings, Call, Chance, Fault, Journal, ROUTE, RecordedBus, Report, Rest, Role, Rows, check,
    journal::{now_us, read},
};

/// How long a client may take to do all that it was told.
const ENDING: Duration = Duration::from_secs(180);
/// How long a client may take to end in order.
const FAREWELL: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
/// How the status of a process tells that it was killed.
const KILLED: Option<i32> = Some(Signal::KILL.as_raw());
/// For what was replayed or sent while the clients ended.
const LAST_WORK: Duration = Duration::from_secs(60);

/// How a client is started.
#[derive(Debug, Clone)]
pub struct Start {
    /// What it does.
    pub role: Role,
    /// Where it is killed or stopped.
    pub fault: Option<Fault>,
    /// How far its clock is off.
    pub skew_ms: i64,
    /// When it gives a call up.
    pub patience: Duration,
    /// Another address of the database, such as one through a proxy.
    pub url: Option<String>,
}

impl Start {
    /// A client whose clock is right and that nothing happens to.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, fault: None, skew_ms: 0, patience: Duration::from_secs(5), url: None }
    }

    /// With a fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}

/// A client in a process of its own.
#[derive(Debug)]
pub struct Client {
    name: String,
    child: Child,
    /// Closing it tells the client to end.
    told: Option<ChildStdin>,
}

/// When a client was killed.
#[derive(Debug, Clone)]
pub struct Death {
    /// Its name, which is the holder of its claims.
    pub name: String,
    /// When, in microseconds of the Unix epoch.
    pub at_us: i64,
}

/// Everything that acts on one database.
#[derive(Debug)]
pub struct Scene {
    program: PathBuf,
    program_arguments: Vec<String>,
    url: String,
    /// Part of every name and shared key, so that several scenes may follow each other on one database.
    label: String,
    directory: TempDir,
    chance: Chance,
    clients: Vec<Client>,
    names: Vec<String>,
    journals: Vec<Journal>,
    deaths: Vec<Death>,
    /// Rows that were there before.
    former: HashSet<Uuid>,
}

impl Scene {
    /// A scene before this database; `program` with these arguments runs one client (see `run_actor`).
    ///
    /// # Errors
    /// When no directory can be made for the journals.
    pub fn new(program: PathBuf, arguments: &[&str], url: &str, seed: u64) -> anyhow::Result<Self> {
        let program_arguments = arguments.iter().map(ToString::to_string).collect();
        let directory = tempfile::tempdir().context("make a directory for the journals")?;
        Ok(Self {
            program,
            program_arguments,
            url: url.to_owned(),
            label: String::new(),
            directory,
            chance: Chance::new(seed),
            clients: Vec::new(),
            names: Vec::new(),
            journals: Vec::new(),
            deaths: Vec::new(),
            former: HashSet::new(),
        })
    }

    /// With a label that no other scene on this database has.
    #[must_use]
    pub fn labelled(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// On a database where these messages are left from another scene, all of them ended.
    #[must_use]
    pub fn after(mut self, former: HashSet<Uuid>) -> Self {
        self.former = former;
        self
    }

    /// Starts a client; answers its name.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub async fn start(&mut self, start: Start) -> anyhow::Result<String> {
        let kind = match &start.role {
            Role::Producer(_) => "producer",
            Role::Worker(_) => "worker",
            Role::Keeper(_) => "keeper",
        };
        let name = format!("{kind}{}-{}", self.label, self.names.len() + 1);
        let settings = ActorSettings {
            name: name.clone(),
            label: self.label.clone(),
            url: start.url.unwrap_or_else(|| self.url.clone()),
            journal: self.directory.path().join(&name),
            seed: self.chance.number(),
            skew_ms: start.skew_ms,
            patience_ms: u64::try_from(start.patience.as_millis()).unwrap_or(u64::MAX),
            role: start.role,
            fault: start.fault,
        };
        let mut child = Command::new(&self.program)
            .args(&self.program_arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start a client")?;
        let mut told = child.stdin.take().context("talk to a client")?;
        let mut line = serde_json::to_vec(&settings)?;
        line.push(b'\n');
        told.write_all(&line).await.context("tell a client its settings")?;
        self.names.push(name.clone());
        self.clients.push(Client { name: name.clone(), child, told: Some(told) });
        Ok(name)
    }

    /// A bus for a client within this process.
    pub fn local(&mut self, name: &str, pool: PgPool) -> RecordedBus {
        let journal = Journal::in_memory(name);
        self.journals.push(journal.clone());
        RecordedBus::new(pool, journal)
    }

    /// Names of the clients that have not ended; those that killed themselves are noted as dead.
    pub fn living(&mut self) -> Vec<String> {
        let mut living = Vec::new();
        for client in &mut self.clients {
            let status = client.child.try_wait();
            if matches!(status, Ok(None)) {
                living.push(client.name.clone());
                continue;
            }
            let was_killed = status.is_ok_and(|status| status.is_some_and(|status| status.signal() == KILLED));
            if was_killed && !self.deaths.iter().any(|death| death.name == client.name) {
                // nobody saw the moment; the last that it noted is at most a call away from it
                let calls = read(&client.name, &self.directory.path().join(&client.name)).unwrap_or_default();
                let last = calls.iter().filter_map(|call| call.returned_us.max(Some(call.invoked_us))).max();
                self.deaths.push(Death { name: client.name.clone(), at_us: last.unwrap_or_else(now_us) });
            }
        }
        living
    }

    /// Sends a signal to a client.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(name)?;
        kill_process(pid, signal).with_context(|| format!("signal {name}"))?;
        if signal == Signal::KILL {
            self.deaths.push(Death { name: name.to_owned(), at_us: now_us() });
        }
        Ok(())
    }

    /// Waits until a client has ended, killed by its own fault or done.
    ///
    /// # Errors
    /// When it does not end within three minutes.
    pub async fn ended(&mut self, name: &str) -> anyhow::Result<()> {
        let client = self.client(name)?;
        let waiting = tokio::time::timeout(ENDING, client.child.wait());
        let status = waiting.await.with_context(|| format!("wait for {name}"))??;
        if !status.success() {
            self.deaths.push(Death { name: name.to_owned(), at_us: now_us() });
        }
        Ok(())
    }

    /// Waits until a client has stopped itself.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn stopped(&mut self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid(name)?;
        let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            let stat = fs::read_to_string(&path).with_context(|| format!("look after {name}"))?;
            // the state follows the name, which is in brackets
            if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("{name} did not stop")
    }

    /// Waits until nothing is queued or claimed; answers how long that took, none if it did not come to that.
    pub async fn drained(&self, pool: &PgPool, patience: Duration) -> Option<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            let look = sqlx::query_scalar("select exists (select from public.agent_messages where done_at is null)");
            // a database that is down or coming up has not drained
            let unfinished: bool = look.fetch_one(pool).await.unwrap_or(true);
            if !unfinished {
                return Some(begin.elapsed());
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Ends all clients in order; those that do not end are killed.
    ///
    /// # Errors
    /// When a process cannot be waited for.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            client.told = None;
        }
        for client in &mut self.clients {
            if tokio::time::timeout(FAREWELL, client.child.wait()).await.is_err() {
                client.child.kill().await.with_context(|| format!("kill {}", client.name))?;
            }
        }
        self.clients.clear();
        Ok(())
    }

    /// Everything that was done, by all clients.
    ///
    /// # Errors
    /// When a journal cannot be read.
    pub fn history(&self) -> anyhow::Result<Vec<Call>> {
        let mut calls: Vec<Call> = self.journals.iter().flat_map(Journal::calls).collect();
        for name in &self.names {
            calls.extend(
                read(name, &self.directory.path().join(name)).with_context(|| format!("read what {name} did"))?,
            );
        }
        calls.sort_by_key(|call| call.invoked_us);
        Ok(calls)
    }

    /// Which clients were killed, and when.
    #[must_use]
    pub fn deaths(&self) -> &[Death] {
        &self.deaths
    }

    /// Stops everybody, lets what came in last be worked off if all should have ended, reads the rows and judges.
    ///
    /// # Errors
    /// When the database does not answer or a journal cannot be read.
    pub async fn verdict(&mut self, pool: &PgPool, rest: Rest) -> anyhow::Result<Report> {
        self.stop().await?;
        if rest == Rest::Drained {
            let bus = self.local("finisher", pool.clone());
            tokio::select! {
                finished = finish(&bus) => finished?,
                _ = self.drained(pool, LAST_WORK) => {}
            }
        }
        let mut rows = Rows::load(pool).await.context("read the rows")?;
        rows.forget(&self.former);
        Ok(check(&self.history()?, &rows, rest))
    }

    fn client(&mut self, name: &str) -> anyhow::Result<&mut Client> {
        self.clients.iter_mut().find(|client| client.name == name).with_context(|| format!("{name} is not there"))
    }

    fn pid(&mut self, name: &str) -> anyhow::Result<Pid> {
        let pid = self.client(name)?.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.with_context(|| format!("{name} has ended"))
    }
}

/// Completes whatever there is, for ever.
async fn finish(bus: &RecordedBus) -> anyhow::Result<()> {
    let lease = Duration::from_secs(30);
    let request = ClaimRequest { route: &ROUTE, holder: "finisher", instance: None, max_messages: 50, lease };
    loop {
        bus.reclaim(500).await?;
        bus.expire(500).await?;
        for message in bus.claim(&request).await? {
            bus.complete(&message.fence(), "finisher", &Completion::default()).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}
