//! `cogo up`, `status` and `down` with a real process that stands in for the fleet.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Cogo, PATIENCE, ended, eventually, free_offset};

pub(crate) fn kill(pid: &Value, signal: Signal) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) fn lives(pid: &Value) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Starts a fleet of one stand-in in the background; answers what it printed.
async fn up(cogo: &Cogo) -> Value {
    let (list, offset) = (cogo.process_list("answering_process"), free_offset().to_string());
    cogo.run(&["up", "--detach", "--processes", &list, "--port-offset", &offset, "--json"]).await.expect(0).json()
}

async fn status(cogo: &Cogo) -> Value {
    cogo.run(&["status", "--json"]).await.json()
}

#[tokio::test]
async fn a_detached_fleet_is_ready_seen_and_stopped() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let fleet = up(&cogo).await;
    let child = fleet["processes"][0]["pid"].clone();
    assert!(lives(&fleet["pid"]) && lives(&child));

    let seen = cogo.run(&["status", "--json"]).await.expect(0).json();
    assert_eq!((&seen["ready"], &seen["processes"][0]["pid"]), (&Value::Bool(true), &child));
    assert_eq!(seen["database"]["messages"]["queued"], 0);
    let table = cogo.run(&["status"]).await.expect(0).stdout;
    assert!(table.contains("stand-in") && table.contains("ready") && table.contains("messages"), "{table}");
    let measured = cogo.run(&["bench", "idle", "--seconds", "1", "--json"]).await.expect(0).json();
    assert_eq!(measured["processes"].as_array().unwrap().len(), 2);
    assert!(measured["rss_mib"].as_f64().unwrap() > 1.0 && measured["cpu_percent_of_one_core"].is_number());

    let second = cogo.run(&["up", "--detach", "--only", "gateway-api", "--json"]).await;
    assert!(second.code == 4 || second.code == 3, "{second:?}");
    let list = cogo.process_list("answering_process");
    for arguments in [&["up", "--processes", &list][..], &["up", "--detach", "--processes", &list]] {
        let refused = cogo.run(arguments).await.expect(4);
        assert!(refused.stderr.contains("already up"), "{refused:?}");
    }
    assert_eq!(status(&cogo).await["ready"], true);

    let stopped = cogo.run(&["down", "--json"]).await.expect(0).json();
    assert_eq!((&stopped["was_up"], &stopped["leftovers"]), (&Value::Bool(true), &Value::from(0)));
    assert!(!lives(&fleet["pid"]) && !lives(&child));
    cogo.run(&["status"]).await.expect(7);
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn state_files_are_private_and_hold_no_password() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    up(&cogo).await;
    for name in ["state.json", "database.url", "logs/stand-in.log", "logs/up.log", "control.sock"] {
        let mode = fs::metadata(cogo.data_dir().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    let password = database.url.split(['@', ':']).nth(2).unwrap().to_owned();
    assert!(password.len() > 10, "the test databases have a password");
    for name in ["state.json", "logs/up.log"] {
        assert!(!fs::read_to_string(cogo.data_dir().join(name)).unwrap().contains(&password), "{name}");
    }
    cogo.run(&["down"]).await.expect(0);
    assert!(!cogo.data_dir().join("database.url").exists());
}

#[tokio::test]
async fn a_killed_process_is_started_again() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let child = up(&cogo).await["processes"][0]["pid"].clone();
    kill(&child, Signal::KILL);
    eventually("the process runs again", async || {
        let seen = status(&cogo).await;
        seen["ready"] == true && seen["processes"][0]["restarts"] == 1 && seen["processes"][0]["pid"] != child
    })
    .await;
    assert_eq!(status(&cogo).await["processes"][0]["last_end"], "signal 9");
    cogo.run(&["down"]).await.expect(0);
    // the audit tells the same, to its end
    let told: Vec<(String, String)> = sqlx::query_as(
        "select kind, coalesce(detail ->> 'exit', '') from public.bus_events
          where kind in ('tree_crash', 'tree_recovery', 'tree_terminate') and detail ->> 'agent' like '%/stand-in/0'
          order by id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let kinds: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["tree_crash", "tree_recovery", "tree_terminate"], "{told:?}");
    assert_eq!(told[0].1, "signal 9");
}

#[tokio::test]
async fn a_killed_up_takes_its_processes_along_and_the_next_one_starts() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let fleet = up(&cogo).await;
    kill(&fleet["pid"], Signal::KILL);
    eventually("the process follows", async || !lives(&fleet["processes"][0]["pid"])).await;
    let gone = cogo.run(&["status"]).await.expect(7);
    assert!(gone.stderr.contains("is gone"), "{gone:?}");

    let next = up(&cogo).await;
    assert_ne!(next["pid"], fleet["pid"]);
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn a_foreground_fleet_stops_on_interrupt() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let (list, offset) = (cogo.process_list("answering_process"), free_offset().to_string());
    let mut command = cogo.command(&["up", "--processes", &list, "--port-offset", &offset, "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let fleet: Value = serde_json::from_str(&line).unwrap();
    kill(&fleet["pid"], Signal::INT);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended(output).code, 0);
    assert!(!lives(&fleet["processes"][0]["pid"]));
    assert!(!cogo.data_dir().join("state.json").exists());
}

#[tokio::test]
async fn the_embedded_postgres_is_started_healed_and_stopped() {
    let cogo = Cogo::without_database();
    // the account that runs Postgres must reach the directory, else the cluster would be moved out of it
    fs::set_permissions(cogo.data_dir().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    up(&cogo).await;
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
    let database = status(&cogo).await["database"].clone();
    assert_eq!((&database["embedded"], &database["messages"]["queued"]), (&Value::Bool(true), &Value::from(1)));

    kill(&database["pid"], Signal::KILL);
    eventually("Postgres runs again and has the message", async || {
        let healed = status(&cogo).await["database"].clone();
        healed["pid"] != database["pid"] && healed["messages"]["queued"] == 1
    })
    .await;

    let fleet = up_state(&cogo);
    kill(&fleet["up"]["pid"], Signal::KILL);
    eventually("the process follows", async || !lives(&fleet["processes"][0]["running"]["pid"])).await;
    let postgres = status(&cogo).await["database"]["pid"].clone();
    assert!(lives(&postgres), "a killed `cogo up` leaves Postgres to the next command");
    let stopped = cogo.run(&["down", "--json"]).await.expect(0).json();
    assert_eq!((&stopped["was_up"], &stopped["postgres_stopped"]), (&Value::Bool(false), &Value::Bool(true)));
    assert!(!lives(&postgres));
}

fn up_state(cogo: &Cogo) -> Value {
    serde_json::from_str(&fs::read_to_string(cogo.data_dir().join("state.json")).unwrap()).unwrap()
}
