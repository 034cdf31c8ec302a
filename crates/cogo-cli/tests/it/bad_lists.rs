//! Entries that make no sense are refused with their name; processes that cannot live end in order, without a spin.

use std::fs;

use crate::support::Cogo;

#[tokio::test]
async fn entries_that_cannot_work_are_refused_by_name() {
    let cogo = Cogo::without_database();
    let route = |route: &str| format!("route = {{ {route} }}");
    for (keys, expected) in [
        (route("service = \"rag/embed\", role = \"embed\", shard = 0"), "rag/embed"),
        (route("service = \"\", role = \"embed\", shard = 0"), "a-one"),
        (route("service = \"rag\", role = \"em bed\", shard = 0"), "em bed"),
        (route("service = \"rag\", role = \"embed\", shard = -1"), "shard"),
        (route("service = \"rag\", role = \"embed\", shrad = 0"), "shrad"),
        ("capabilities = [\"embed fast!\"]".to_owned(), "capabilities"),
        ("pool = { min = 2, max = 1 }".to_owned(), "min 2 above max 1"),
        ("pool = { min = -1, max = 1 }".to_owned(), "min"),
        ("pool = { max = 1, mox = 2 }".to_owned(), "mox"),
        ("intensity = 1\nperiod_s = 0".to_owned(), "period_s of 0"),
    ] {
        let list = cogo.list_of(&[("a-one", "answering_process", &keys)], "");
        let refused = cogo.run(&["up", "--processes", &list]).await.expect(1);
        assert!(refused.stderr.contains(expected) && refused.stderr.contains("hint: mend "), "{keys}: {refused:?}");
    }
    let list = cogo.list_of(&[("a-one", "answering_process", "")], "");
    let text = fs::read_to_string(&list).unwrap();
    let port = text.lines().find(|line| line.starts_with("port")).unwrap();
    let list = cogo.file("no-port.toml", &text.replace(port, "port = 0"));
    let refused = cogo.run(&["up", "--processes", list.to_str().unwrap()]).await.expect(1);
    assert!(refused.stderr.contains("port 0"), "{refused:?}");
    assert!(!cogo.data_dir().exists(), "nothing was started");
}

#[tokio::test]
async fn intensity_zero_on_every_floor_ends_the_fleet_at_the_first_end() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let starts = cogo.program("ends-at-once", "exit 1");
    let floors = "[root]\nintensity = 0\n[[domain]]\nname = \"b\"\nintensity = 0\n";
    let list = [("a-good", "answering_process", ""), ("b-bad", "ends-at-once", "intensity = 0")];
    let list = cogo.list_of(&list, floors);
    let gave_up = cogo.run(&["up", "--processes", &list, "--json"]).await.expect(1);
    assert!(gave_up.problem()["detail"].as_str().unwrap().contains("b-bad was restarted too often"), "{gave_up:?}");
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 1);
    assert!(!cogo.data_dir().join("state.json").exists());
}

#[tokio::test]
async fn one_that_ends_well_for_ever_is_tried_with_growing_pauses_too() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let starts = cogo.program("ends-well", "exit 0");
    let list = cogo.list_of(&[("a-bad", "ends-well", "")], "");
    let late = cogo.run(&["up", "--processes", &list, "--ready-timeout", "10", "--json"]).await.expect(6);
    assert!(late.problem()["detail"].as_str().unwrap().contains("a-bad"), "{late:?}");
    let count = fs::read_to_string(&starts).unwrap().lines().count();
    assert!((2..60).contains(&count), "{count} starts");
}
