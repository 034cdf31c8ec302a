//! Other queues, measured by their own scripts in turn with the bus, so that both meet the same machine.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{process::Command, runtime::Handle};

use crate::{
    command::{
        bench_bus_database::{Account, BenchServer},
        bench_bus_load::Plan,
        bench_bus_mixed::{Pairs, Terms, pairs},
    },
    context::Context,
    failure::Failure,
};

/// A script that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the messages of the scripts hold besides their padding.
const WITHOUT_PAD: u32 = 30;
/// Settings with which a peer is at its best, or keeps what the bus keeps; the environment wins.
const SETTINGS: [(&str, &[(&str, &str)]); 3] = [
    ("pgmq", &[("FINISH", "archive")]),
    ("graphile_worker-rs", &[("CONC", "500"), ("LQ", "5000")]),
    ("awa", &[("CONC", "256"), ("CLAIMERS", "2")]),
];

/// A queue with its script, and what it has shown so far.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    directory: PathBuf,
    /// The database that its script makes anew at each start and leaves behind.
    pub(crate) database: String,
    pub(crate) runs: Vec<PeerRun>,
    /// Why it is not measured any more.
    pub(crate) failed: Option<String>,
    pub(crate) beside_us: Pairs,
    /// What became of our messages beside it.
    pub(crate) accounts: Vec<Account>,
    /// Why it has no mixed run, or no further one.
    pub(crate) no_mixed_run: Option<String>,
}

/// The line that a script ends with, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct PeerRun {
    pub(crate) enqueue_per_s: f64,
    pub(crate) process_per_s: f64,
}

/// The peers of a directory by name; all of them unless some are named.
pub(crate) fn find_peers(directory: &Path, named: &[String]) -> Result<Vec<Peer>, Failure> {
    let directory = Context::absolute(directory)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let directory = entry?.path();
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if directory.join("run.sh").is_file() && (named.is_empty() || named.contains(&name)) {
            found.push(Peer::new(name, directory));
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    let missing = named.iter().find(|name| !found.iter().any(|peer| peer.name == **name));
    if let Some(name) = missing {
        return Err(Failure::not_found(format!("There is no {name}/run.sh in {}", directory.display())));
    }
    if found.is_empty() {
        return Err(Failure::not_found(format!("There is no <peer>/run.sh in {}", directory.display())));
    }
    Ok(found)
}

impl Peer {
    fn new(name: String, directory: PathBuf) -> Self {
        let word: String = name.chars().map(|of| if of.is_ascii_alphanumeric() { of } else { '_' }).collect();
        let database = format!("cogo_bench_peer_{}", word.to_ascii_lowercase());
        let (runs, beside_us, accounts) = (Vec::new(), Pairs::default(), Vec::new());
        Self { name, directory, database, runs, failed: None, beside_us, accounts, no_mixed_run: None }
    }

    /// One run of its script; after a failure it is left out.
    pub(crate) async fn measure(&mut self, plan: Plan) {
        if self.failed.is_some() {
            return;
        }
        match self.script(plan, f64::from(plan.messages)).await {
            Ok(run) => self.runs.push(run),
            Err(why) => self.failed = Some(why),
        }
    }

    /// Its load beside ours, behind a run of its script; after a failure there is no further one.
    pub(crate) async fn measure_beside_us(&mut self, at: (&BenchServer, &Handle), terms: Terms) -> Result<(), Failure> {
        if self.failed.is_none() && self.no_mixed_run.is_none() {
            match pairs(at, terms, self).await? {
                Ok((runs, account)) => {
                    self.beside_us.enqueue.extend(runs.enqueue);
                    self.beside_us.drain.extend(runs.drain);
                    self.beside_us.mixed.extend(runs.mixed);
                    self.accounts.push(account);
                }
                Err(why) => self.no_mixed_run = Some(why),
            }
        }
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        let (Some(run), None) = (self.runs.last(), &self.failed) else {
            let why = self.failed.as_deref().unwrap_or("it was not measured");
            return format!("{} failed: {why}", self.name);
        };
        let mixed = match (&self.no_mixed_run, self.beside_us.mixed.last()) {
            (None, Some(last)) => {
                format!("mixed, at last, {:.0}/s beside {:.0}/s of ours", last.its_per_s, last.our_per_s)
            }
            (why, _) => format!("no mixed run: {}", why.as_deref().unwrap_or("it was not measured")),
        };
        format!("{}: {:.0} enqueued/s, {:.0} done/s, {mixed}", self.name, run.enqueue_per_s, run.process_per_s)
    }

    /// What it drained a second the last time.
    pub(crate) fn drain_per_s(&self) -> f64 {
        self.runs.last().map_or(0.0, |run| run.process_per_s)
    }

    /// Runs its script with so many messages; dropped, it ends the script.
    pub(crate) async fn script(&self, plan: Plan, messages: f64) -> Result<PeerRun, String> {
        let mut command = Command::new(self.directory.join("run.sh"));
        command.args(["throughput", &format!("{messages:.0}")]).current_dir(&self.directory);
        // the scripts have a server of their own, which this must not redirect
        command.env_remove("DATABASE_URL");
        command.env("PEER_DB", &self.database);
        command.env("PAD", plan.payload_bytes.saturating_sub(WITHOUT_PAD).to_string());
        command.env("ENQ_BATCH", plan.batch.to_string());
        for (name, value) in SETTINGS.iter().filter(|(peer, _)| *peer == self.name).flat_map(|(_, settings)| *settings)
        {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_elapsed| format!("no result within {} s", PATIENCE.as_secs()))?
            .map_err(|error| error.to_string())?;
        if !ended.status.success() {
            let words = String::from_utf8_lossy(&ended.stderr);
            let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word");
            return Err(format!("{}: {last}", ended.status));
        }
        read(&String::from_utf8_lossy(&ended.stdout))
    }
}

fn read(output: &str) -> Result<PeerRun, String> {
    let line = output.lines().rev().find(|line| line.starts_with('{')).ok_or("its output has no line of JSON")?;
    serde_json::from_str(line).map_err(|error| format!("its result cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PLAN: Plan = Plan { messages: 100, consumers: 2, producers: 1, batch: 50, payload_bytes: 300 };

    #[tokio::test]
    async fn a_peer_gets_its_settings_and_a_broken_one_is_reported() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = |name: &str, text: &str| {
            let of_peer = directory.path().join(name);
            fs::create_dir(&of_peer).expect("a directory");
            let path = of_peer.join("run.sh");
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
            let mut rights = fs::metadata(&path).expect("rights").permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
            fs::set_permissions(&path, rights).expect("rights");
        };
        script(
            "pgmq",
            "[ \"$1 $2 $PAD $FINISH $PEER_DB\" = 'throughput 100 270 archive cogo_bench_peer_pgmq' ] || exit 9\n\
             echo talk; echo '{\"enqueue_per_s\": 10, \"process_per_s\": 4, \"n\": 100}'",
        );
        script("broken", "echo 'no server' >&2; exit 3");
        fs::create_dir(directory.path().join("rust")).expect("a directory");

        let mut peers = find_peers(directory.path(), &[]).expect("peers");
        for peer in &mut peers {
            peer.measure(PLAN).await;
        }
        let [broken, pgmq] = peers.as_slice() else { panic!("{peers:?}") };
        assert!(broken.failed.as_deref().is_some_and(|why| why.ends_with("no server")), "{broken:?}");
        assert_eq!(pgmq.runs, [PeerRun { enqueue_per_s: 10.0, process_per_s: 4.0 }], "{pgmq:?}");
        assert!(find_peers(directory.path(), &["rust".to_owned()]).is_err());
    }

    #[test]
    fn results_are_the_last_line_of_json() {
        assert!(read("nothing").is_err());
        assert!(read("{\"enqueue_per_s\": 1}").is_err());
        assert!(read("x\n{\"enqueue_per_s\": 1, \"process_per_s\": 2}\nbye").is_ok());
    }
}
