//! `cogo chaos` with its own Postgres and real processes, for seconds instead of minutes.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::support::{Cogo, eventually};

/// A `cogo` whose directory the account that runs Postgres can reach.
fn cogo() -> Cogo {
    let cogo = Cogo::without_database();
    fs::set_permissions(cogo.data_dir().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    cogo
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"))
}

#[tokio::test]
async fn a_short_run_loses_nothing_and_tells_all_of_its_figures() {
    let cogo = cogo();
    let faults = "kill,listeners-cut";
    let ended = cogo.run(&["chaos", "--minutes", "0.4", "--seed", "5", "--faults", faults, "--json"]).await;
    let report: Value = serde_json::from_str(ended.stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    for never in ["lost", "double_completions", "two_owner_moments", "stale_accepted", "violations"] {
        assert_eq!(number(&report, never), 0.0, "{never}: {ended:?}");
    }
    assert_eq!((&report["seed"], &report["minutes"]), (&Value::from(5), &Value::from(0.4)));
    assert!(number(&report, "faults") >= 1.0 && number(&report, "sent") > 0.0, "{report}");
    assert_eq!(report["sent"], report["done"]);
    let verdicts = number(&report, "verdicts");
    let wrong = ["false_suspect", "false_dead", "missed_suspect", "missed_dead"];
    let wrong: f64 = wrong.into_iter().map(|key| number(&report, key)).sum();
    assert!(verdicts > 0.0);
    assert_eq!(number(&report, "verdicts_right") + wrong, verdicts);
    // a machine may be too slow for the limits of time; the exit code must say so then, and only then
    let in_time = number(&report, "recovery_max_s") <= 35.0
        && number(&report, "crash_recovery_max_s") <= 2.0
        && number(&report, "verdicts_right") >= 0.999 * verdicts;
    assert_eq!(ended.code, i32::from(!in_time), "{ended:?}");
    assert!(ended.stderr.contains("schedule of seed 5"), "{ended:?}");
    assert_eq!(cogo.data_dir().exists(), !in_time, "what a good run made is gone");
}

#[tokio::test]
async fn a_schedule_is_printed_without_a_run_and_is_the_same_for_the_same_seed() {
    let cogo = cogo();
    let printed = async |seed| cogo.run(&["chaos", "--schedule", "--seed", seed, "--json"]).await.expect(0).json();
    let (first, again, other) = (printed("7").await, printed("7").await, printed("8").await);
    assert!(first.as_array().is_some_and(|faults| faults.len() >= 10), "{first}");
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(!cogo.data_dir().exists());
}

/// Children of a process and their states.
fn children(parent: u32) -> Vec<(u32, char)> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?.chars().next()?;
        (fields.next()?.parse() == Ok(parent)).then_some((pid, state))
    };
    pids.filter_map(of).collect()
}

fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[tokio::test]
async fn an_interrupt_leaves_no_process_behind_not_even_a_stopped_one() {
    let cogo = cogo();
    let mut command = cogo.command(&["chaos", "--seed", "1", "--faults", "stop-40", "--workers", "4"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("processes are up") {
        line.clear();
        assert!(stderr.read_line(&mut line).await.unwrap() > 0, "it ended before the fleet was up");
    }
    let mut agents = Vec::new();
    eventually("a process of the fleet is stopped", async || {
        agents = children(pid);
        agents.iter().any(|(_, state)| *state == 'T')
    })
    .await;
    assert!(agents.len() >= 6, "{agents:?}");
    let run = fs::read_dir(cogo.data_dir()).unwrap().next().unwrap().unwrap().path();
    let postmaster = fs::read_to_string(run.join("postgres/data/postmaster.pid")).unwrap();
    let postmaster: u32 = postmaster.lines().next().unwrap().parse().unwrap();

    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::INT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("Interrupted"), "{rest}");
    assert!(is_gone(postmaster) && agents.iter().all(|(agent, _)| is_gone(*agent)), "{agents:?}");
    assert!(!cogo.data_dir().exists());
}
