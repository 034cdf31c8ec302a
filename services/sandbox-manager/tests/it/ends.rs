//! How jobs end, each exactly once and with all of their processes.

use std::sync::Arc;

use cogo_contracts::SandboxEvent;
use uuid::Uuid;

use super::support::{ends, local, shell, until_group_is_gone};

#[tokio::test]
async fn limit_kills_the_command_and_its_children() {
    let mut request = shell("echo $$; sleep 100 & sleep 100");
    request.limit_ms = 3000;
    let reply = local().run(request).await.unwrap();
    assert_eq!(reply.end, SandboxEvent::TimedOut);
    assert!(reply.run_ms >= 3000 && !reply.stdout.is_empty(), "{reply:?}");
    until_group_is_gone(&reply.stdout).await;
}

#[tokio::test]
async fn what_the_command_leaves_in_the_background_is_killed_at_its_end() {
    let reply = local().run(shell("sleep 100 & echo $$")).await.unwrap();
    assert_eq!(reply.end, SandboxEvent::Exited { code: Some(0) });
    until_group_is_gone(&reply.stdout).await;
}

#[tokio::test]
async fn process_outside_the_group_cannot_hold_up_the_end() {
    let reply = local().run(shell("setsid sleep 20 & echo started")).await.unwrap();
    assert_eq!((reply.end, reply.stdout.as_str()), (SandboxEvent::Exited { code: Some(0) }, "started\n"));
    assert!(reply.run_ms < 18_000, "waited {} ms for a process that left the group", reply.run_ms);
}

#[tokio::test]
async fn command_that_a_signal_ends_has_no_code() {
    let reply = local().run(shell("kill -9 $$")).await.unwrap();
    assert_eq!(reply.end, SandboxEvent::Exited { code: None });
}

#[tokio::test]
async fn dropping_a_job_kills_its_command_and_ends_its_events_once() {
    let house = local();
    let message = Uuid::now_v7();
    let manager = Arc::clone(&house.manager);
    let job = tokio_util::task::AbortOnDropHandle::new(
        house.tracker.spawn(async move { manager.run(message, shell("echo $$; sleep 100 & sleep 100")).await }),
    );
    let mut events = house.events(message).await;
    assert_eq!(events.next().await, Some(SandboxEvent::Started));
    let Some(SandboxEvent::Stdout { text: group }) = events.next().await else { panic!("no output") };
    drop(job);
    until_group_is_gone(&group).await;
    let rest = events.rest().await;
    assert!(matches!(rest.as_slice(), [SandboxEvent::Failed { .. }]), "{rest:?}");
    assert_eq!(house.get(&format!("/sandbox/jobs/{message}/events"), &[]).await.status(), 404);
    assert_eq!(house.json("/sandbox").await["jobs"], 0);
}

#[tokio::test]
async fn stop_of_the_manager_kills_what_runs() {
    let house = local();
    let message = Uuid::now_v7();
    let manager = Arc::clone(&house.manager);
    let job = house.tracker.spawn(async move { manager.run(message, shell("echo $$; sleep 100")).await });
    let mut events = house.events(message).await;
    events.next().await.unwrap();
    let Some(SandboxEvent::Stdout { text: group }) = events.next().await else { panic!("no output") };
    house.stop.cancel();
    until_group_is_gone(&group).await;
    let reply = job.await.unwrap().unwrap();
    assert!(matches!(reply.end, SandboxEvent::Failed { .. }), "{reply:?}");
}

#[tokio::test]
async fn live_events_are_those_of_the_reply() {
    let house = local();
    let message = Uuid::now_v7();
    let run = house.manager.run(message, shell("echo one; echo two >&2; exit 4"));
    let (reply, events) = tokio::join!(run, async { house.events(message).await.rest().await });
    let reply = reply.unwrap();
    assert_eq!((ends(&events), events.first(), events.last()), (1, Some(&SandboxEvent::Started), Some(&reply.end)));
    assert!(events.contains(&SandboxEvent::Stdout { text: reply.stdout }));
    assert!(events.contains(&SandboxEvent::Stderr { text: reply.stderr }));
}
