//! What a command gets and what comes back of it.

use std::path::Path;

use cogo_contracts::{Isolation, SandboxEvent, SandboxReply};
use cogo_sandbox_manager::{OUTPUT_CAP, Refusal, Settings};

use super::support::{command, house, local, shell};

fn exited(code: i32) -> SandboxEvent {
    SandboxEvent::Exited { code: Some(code) }
}

#[tokio::test]
async fn exit_code_input_and_both_streams_are_carried() {
    let mut request = shell("cat; echo oops >&2; exit 3");
    request.stdin = "hello wörld".to_owned();
    let reply = local().run(request).await.unwrap();
    let SandboxReply { end, stdout, stderr, truncated, isolation, .. } = reply;
    assert_eq!((end, stdout.as_str(), stderr.as_str()), (exited(3), "hello wörld", "oops\n"));
    assert_eq!((truncated, isolation), (false, Isolation::None));
}

#[tokio::test]
async fn command_gets_a_clean_environment_and_a_directory_that_is_removed() {
    let house = local();
    let reply = house.run(command(&["env"])).await.unwrap();
    assert_eq!(reply.stdout, format!("PATH={}\n", Settings::default().command_path));
    let reply = house.run(shell("pwd; ls -A | wc -l; touch left-behind")).await.unwrap();
    let (directory, count) = reply.stdout.split_once('\n').unwrap();
    assert!(directory.contains("cogo-sandbox-") && !Path::new(directory).exists(), "{directory}");
    assert_eq!(count.trim(), "0");
}

#[tokio::test]
async fn arguments_meet_no_shell() {
    let reply = local().run(command(&["echo", "$HOME; ls", "*"])).await.unwrap();
    assert_eq!(reply.stdout, "$HOME; ls *\n");
}

#[tokio::test]
async fn output_beyond_the_cap_is_cut_while_the_command_goes_on() {
    let reply = local().run(shell("head -c 1000000 /dev/zero | tr '\\0' x; echo end >&2; exit 1")).await.unwrap();
    assert_eq!((reply.stdout.len(), reply.truncated), (OUTPUT_CAP, true));
    assert_eq!((reply.end, reply.stderr.as_str()), (exited(1), "end\n"));
}

#[tokio::test]
async fn output_that_is_no_text_can_be_stored() {
    let reply = local().run(shell("printf 'a\\000b\\377c'")).await.unwrap();
    assert_eq!(reply.stdout, "a\u{fffd}b\u{fffd}c");
}

#[tokio::test]
async fn input_that_nobody_reads_does_no_harm() {
    let mut request = command(&["true"]);
    request.stdin = "x".repeat(1_000_000);
    assert_eq!(local().run(request).await.unwrap().end, exited(0));
}

#[tokio::test]
async fn command_that_cannot_start_has_failed() {
    let reply = local().run(command(&["no-such-program"])).await.unwrap();
    let SandboxEvent::Failed { reason } = reply.end else { panic!("{:?}", reply.end) };
    assert!(reason.contains("no-such-program") && reason.contains("No such file"), "{reason}");
}

#[tokio::test]
async fn what_cannot_be_run_here_is_refused() {
    let house = local();
    for isolation in [Isolation::Namespaces, Isolation::Vm] {
        let mut request = command(&["true"]);
        request.isolation = isolation;
        assert_eq!(house.run(request).await, Err(Refusal::Isolation(isolation)));
    }
    let mut requests = vec![command(&[]), command(&[""]), command(&["echo", "a\0b"])];
    for limit_ms in [0, 600_001, u64::MAX] {
        let mut request = command(&["true"]);
        request.limit_ms = limit_ms;
        requests.push(request);
    }
    for request in requests {
        let refused = house.run(request.clone()).await;
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{request:?}: {refused:?}");
    }
}

#[tokio::test]
async fn nothing_runs_here_unless_it_is_switched_on() {
    let refusal = house(Settings::default()).run(command(&["true"])).await.unwrap_err();
    assert_eq!(refusal, Refusal::NobodyConnected);
    assert!(refusal.to_string().contains("COGO_SANDBOX_MANAGER_ALLOW_LOCAL=true"), "{refusal}");
}

#[tokio::test]
async fn state_is_told_truthfully() {
    let state = local().json("/sandbox").await;
    assert_eq!((&state["isolation"], &state["allow_local"]), (&"none".into(), &true.into()));
    assert_eq!((&state["workers"][0]["name"], &state["workers"][0]["kind"]), (&"local".into(), &"local".into()));
}
