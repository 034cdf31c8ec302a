//! Processes that cannot live, and lists that cannot be run: an orderly end or a clear refusal, never a spin.

use std::{fs, path::Path, process::Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    fleet::{kill, lives},
    support::{Cogo, PATIENCE, ended, eventually},
    tree::node,
};

/// The word that a stand-in writes at each of its starts.
fn starts(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_process_that_ends_for_ever_is_tried_with_growing_pauses_and_hurts_nobody() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let file = cogo.program("ends-at-once", "exit 1");
    let list = cogo.list_of(&[("a-good", "answering_process", ""), ("a-bad", "ends-at-once", "")], "");
    let up = ["up", "--detach", "--processes", &list, "--ready-timeout", "10", "--json"];
    let ended = cogo.run(&up).await.expect(6);
    assert!(ended.problem()["detail"].as_str().unwrap().contains("a-bad (exit code 1)"), "{ended:?}");
    // pauses of up to 100, 200, 400, … ms: about eight starts in ten seconds, where a spin would have thousands
    assert!((2..60).contains(&starts(&file)), "{} starts", starts(&file));
    let log = fs::read_to_string(cogo.data_dir().join("logs/up.log")).unwrap();
    let spawned = |path: &str| {
        let is_spawn = |line: &&str| line.contains("\"spawn\"") && line.contains(&format!("\"{path}\""));
        log.lines().filter(is_spawn).count()
    };
    assert_eq!(spawned("a/a-good/0"), 1);
    // the last one may have been told to end before it could say that it began
    assert!([0, 1].contains(&(spawned("a/a-bad/0") - starts(&file))), "{log}");
    assert!(!log.contains("\"escalation\""), "{log}");
}

#[tokio::test]
async fn an_intensity_escalates_floor_by_floor_and_ends_the_fleet_in_order() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let file = cogo.program("ends-at-once", "exit 1");
    let list = [("a-good", "answering_process", ""), ("b-bad", "ends-at-once", "intensity = 1")];
    let floors = "[root]\nintensity = 0\n[[domain]]\nname = \"b\"\nintensity = 1\n";
    let list = cogo.list_of(&list, floors);
    for detach in [&[][..], &["--detach"]] {
        let before = starts(&file);
        let ended = cogo.run(&[&["up", "--processes", &list, "--json"], detach].concat()).await.expect(1);
        let problem = ended.problem();
        assert!(problem["detail"].as_str().unwrap().contains("b-bad was restarted too often"), "{ended:?}");
        assert!(problem["hint"].as_str().unwrap().contains("intensity"), "{ended:?}");
        // the process may start twice each time its domain starts it, which is twice
        assert_eq!(starts(&file) - before, 4);
        assert!(!cogo.data_dir().join("state.json").exists());
    }
}

#[tokio::test]
async fn a_superseded_process_is_not_started_again() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let file = cogo.program("is-superseded", "exit 79");
    let list = cogo.list_of(&[("a-one", "is-superseded", "")], "");
    let ended = cogo.run(&["up", "--processes", &list]).await.expect(4);
    assert!(ended.stderr.contains("a-one was superseded") && ended.stderr.contains("hint: "), "{ended:?}");
    assert_eq!(starts(&file), 1);
}

#[tokio::test]
async fn lists_that_cannot_be_run_are_refused_before_anything_starts() {
    let cogo = Cogo::without_database();
    let one = |keys: &str, more: &str| {
        fs::read_to_string(cogo.list_of(&[("a-one", "answering_process", keys)], more)).unwrap()
    };
    let cycle = "[[domain]]\nname = \"a\"\nparent = \"b\"\n[[domain]]\nname = \"b\"\nparent = \"a\"\n";
    for (list, expected) in [
        (one("intensty = 3", ""), "intensty"),
        (one("pool = { min = 3, max = 2 }", ""), "min 3 above max 2"),
        (one("", cycle), "cycle"),
        (one("strategy = \"two_for_one\"", ""), "two_for_one"),
    ] {
        let list = cogo.file("bad.toml", &list);
        let ended = cogo.run(&["up", "--processes", list.to_str().unwrap()]).await.expect(1);
        assert!(ended.stderr.contains(expected) && ended.stderr.contains("hint: mend "), "{ended:?}");
    }
    let twice = [("a-one", "answering_process", ""), ("a-one", "answering_process", "")];
    let ended = cogo.run(&["up", "--processes", &cogo.list_of(&twice, "")]).await.expect(1);
    assert!(ended.stderr.contains("names a-one twice"), "{ended:?}");
    assert!(!cogo.data_dir().exists());
}

#[tokio::test]
async fn a_deaf_process_is_killed_after_its_time_or_at_the_second_signal() {
    let database = cogo_test_support::empty_database().await;
    for (shutdown_s, signals) in [(1, 1), (3600, 2)] {
        let cogo = Cogo::on(&database.url);
        let file = cogo.program("is-deaf", "trap '' TERM\necho deaf >> $0.ready\nwhile :; do sleep 0.05; done");
        let list = cogo.list_of(&[("a-one", "is-deaf", &format!("shutdown_s = {shutdown_s}"))], "");
        let mut up = cogo.command(&["up", "--processes", &list, "--json"]);
        let up = up.stdout(Stdio::null()).spawn().unwrap();
        eventually("it is deaf", async || file.with_extension("ready").exists()).await;
        let deaf = node(&cogo.run(&["tree", "--json"]).await.expect(0).json(), "a/a-one/0")["pid"].clone();
        kill(&Value::from(up.id().unwrap()), Signal::INT);
        if signals == 2 {
            eventually("it is told to stop", async || {
                let tree = cogo.run(&["tree", "--json"]).await.expect(0).json();
                node(&tree, "a/a-one/0")["state"] == "stopping"
            })
            .await;
            let refused = cogo.run(&["restart", "a-one"]).await.expect(4);
            assert!(refused.stderr.contains("The fleet is stopping"), "{refused:?}");
            kill(&Value::from(up.id().unwrap()), Signal::INT);
        }
        let ended = ended(tokio::time::timeout(PATIENCE, up.wait_with_output()).await.unwrap().unwrap()).expect(0);
        assert!(ended.stderr.contains("killing it") && !lives(&deaf), "{ended:?}");
    }
}
