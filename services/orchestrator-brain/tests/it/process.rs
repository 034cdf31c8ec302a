//! The process itself, in the frame: it decides, refuses, learns and ends in order.

use std::time::Duration;

use cogo_contracts::{DecideReply, DispatchRequest, Task, TaskStatus, routes};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::it::support::{World, ask, request, world};

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(world: &World) -> Child {
    Command::new(env!("CARGO_BIN_EXE_cogo-orchestrator-brain"))
        .env("DATABASE_URL", &world.database.url)
        .env("COGO_PORT", "0")
        .env("COGO_ORCHESTRATOR_BRAIN_OBSERVE_MS", "50")
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Asks again and again until there is an answer.
async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    tokio::time::timeout(PATIENCE, async {
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        loop {
            turn.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    })
    .await
    .expect("the process does its work in time")
}

async fn settled(world: &World, id: uuid::Uuid) -> Task {
    let step_is_over = |task: &Task| task.steps[0].done_at.is_some();
    eventually(async || world.bus.task(id).await.unwrap().filter(step_is_over)).await
}

#[tokio::test]
async fn process_decides_refuses_learns_and_ends_in_order() {
    let world = world().await;
    let mut process = start(&world);

    let id = world.send(&ask()).await;
    let task = settled(&world, id).await;
    let reply: DecideReply = serde_json::from_str(
        &sqlx::query_scalar::<_, String>("select result::text from public.agent_messages where id = $1")
            .bind(id)
            .fetch_one(&world.database.pool)
            .await
            .unwrap(),
    )
    .unwrap();
    assert_eq!((task.steps.len(), reply.route), (2, routes::CHAT));
    let sent = world.claim(&routes::DISPATCH, "dispatcher").await.unwrap();
    let dispatch: DispatchRequest = serde_json::from_value(sent.payload).unwrap();
    assert_eq!(dispatch.assignment.decision_id, Some(reply.decision_id));
    assert_eq!(world.count("public.orch_decisions").await, 1);

    let unknown = world.send(&request("aks", json!({}))).await;
    let task = settled(&world, unknown).await;
    assert_eq!((task.status, task.steps.len(), task.steps[0].attempts), (TaskStatus::Failed, 1, 1));
    assert!(task.error.as_deref().unwrap().starts_with("Unknown intent \"aks\"; known: ask"), "{task:?}");

    let work = world.dispatched(reply.decision_id, 1).await;
    assert!(world.bus.complete(&work.fence(), "chat", &Default::default()).await.unwrap());
    let learned = async || {
        let done: Option<i64> = sqlx::query_scalar("select done from public.orch_stats where done > 0")
            .fetch_optional(&world.database.pool)
            .await
            .unwrap();
        done
    };
    assert_eq!(eventually(learned).await, 1);

    let pid = process.id().unwrap().to_string();
    assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
