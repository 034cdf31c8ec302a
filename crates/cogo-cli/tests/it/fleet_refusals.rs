//! Fleets that cannot start, and what is said about them.

use std::net::TcpListener;

use crate::support::{Cogo, STAND_IN_PORT, free_offset};

#[tokio::test]
async fn missing_programs_are_named_with_the_command_that_builds_them() {
    let cogo = Cogo::without_database();
    let list = cogo.process_list("cogo-no-such-program");
    let ended = cogo.run(&["up", "--processes", &list]).await.expect(3);
    assert!(ended.stderr.contains("cogo-no-such-program") && ended.stderr.contains("cargo build"), "{ended:?}");
}

#[tokio::test]
async fn a_taken_port_is_named_with_a_way_out() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (list, offset) = (cogo.process_list("answering_process"), (port - STAND_IN_PORT).to_string());
    for detach in [&[][..], &["--detach"]] {
        let arguments = [&["up", "--processes", &list, "--port-offset", &offset], detach].concat();
        let ended = cogo.run(&arguments).await.expect(4);
        for expected in [port.to_string().as_str(), "stand-in", "--port-offset"] {
            assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
        }
    }
}

#[tokio::test]
async fn a_process_that_never_gets_ready_is_a_timeout_with_its_last_words() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    // without arguments it complains and ends
    let (list, offset) = (cogo.process_list("sleep"), free_offset().to_string());
    for detach in [&[][..], &["--detach"]] {
        let fixed = ["up", "--processes", &list, "--port-offset", &offset, "--ready-timeout", "8", "--json"];
        let ended = cogo.run(&[&fixed, detach].concat()).await.expect(6);
        let problem = ended.problem();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("stand-in") && detail.contains("missing operand"), "{detail}");
    }
    assert!(!cogo.data_dir().join("state.json").exists());
    cogo.run(&["status"]).await.expect(7);
}

#[tokio::test]
async fn an_unknown_process_is_wrong_usage() {
    let cogo = Cogo::without_database();
    let ended = cogo.run(&["up", "--only", "nobody"]).await.expect(2);
    assert!(ended.stderr.contains("gateway-api"), "{ended:?}");
}
