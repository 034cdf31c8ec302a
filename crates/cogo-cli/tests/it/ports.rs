//! Where processes listen: as their own settings say, else as the list does; no two at the same place.

use std::fs;

use serde_json::Value;

use crate::support::{Cogo, ended, free_port};

fn ports(status: &Value) -> Vec<(String, u64)> {
    let processes = status["processes"].as_array().unwrap().iter();
    processes.map(|process| (process["name"].as_str().unwrap().to_owned(), process["port"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn a_port_of_its_settings_is_the_first_instances_and_no_others() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let settings = tempfile::tempdir().unwrap();
    let port = free_port();
    fs::write(settings.path().join("a-one.toml"), format!("port = {port}\n")).unwrap();
    let list = cogo.list_of(&[("a-one", "answering_process", "pool = { max = 3 }")], "");
    let mut up = cogo.command(&["up", "--detach", "--processes", &list, "--json"]);
    ended(up.env("COGO_CONFIG_DIR", settings.path()).output().await.unwrap()).expect(0);
    cogo.run(&["scale", "a-one", "3"]).await.expect(0);
    // also after it was started again
    cogo.run(&["restart", "a-one/0"]).await.expect(0);
    cogo.run(&["restart", "a-one/1"]).await.expect(0);
    let found = ports(&cogo.run(&["status", "--json"]).await.expect(0).json());
    assert_eq!(found[0], ("a-one".to_owned(), u64::from(port)));
    let others = [found[1].1, found[2].1];
    assert!(others.iter().all(|other| *other != 0 && *other != u64::from(port)) && others[0] != others[1], "{found:?}");
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn two_processes_at_one_port_are_named_before_anything_starts() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let settings = tempfile::tempdir().unwrap();
    let list = cogo.list_of(&[("a-one", "answering_process", ""), ("a-two", "answering_process", "")], "");
    for (a_one, a_two, expected) in
        [("port = 45117", "port = 45117", "a-one and a-two"), ("port = \"http\"", "", "a-one.toml")]
    {
        fs::write(settings.path().join("a-one.toml"), a_one).unwrap();
        fs::write(settings.path().join("a-two.toml"), a_two).unwrap();
        let mut up = cogo.command(&["up", "--processes", &list, "--json"]);
        let refused = ended(up.env("COGO_CONFIG_DIR", settings.path()).output().await.unwrap());
        assert_ne!(refused.code, 0);
        assert!(refused.problem()["detail"].as_str().unwrap().contains(expected), "{refused:?}");
        assert!(!cogo.data_dir().join("state.json").exists());
    }
}
