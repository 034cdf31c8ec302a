//! Tasks: status, result of the last leaf, cancelling.

use cogo_bus_core::{Completion, Failure};
use cogo_contracts::{MessageStatus, NewMessage, TaskStatus};
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    ROUTE, bus, claim, claim_one, delays_to_pass, message, misplaced, statuses, until_somebody_waits_for_a_lock,
};

#[tokio::test]
async fn task_goes_from_queued_to_the_result_of_its_last_leaf() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let status = async || bus.task(root).await.unwrap().unwrap().status;
    assert_eq!(status().await, TaskStatus::Queued);
    let first = claim_one(&bus, "w").await;
    assert_eq!(status().await, TaskStatus::Running);
    let follow_ups = vec![NewMessage::new(ROUTE, None, json!({}))];
    let completion = Completion { result: Some(json!("decided")), follow_ups, ..Completion::default() };
    bus.complete(&first.fence(), "w", &completion).await.unwrap();
    assert_eq!(status().await, TaskStatus::Running, "never finished between two steps");
    let second = claim_one(&bus, "w").await;
    let completion = Completion { result: Some(json!("answered")), ..Completion::default() };
    bus.complete(&second.fence(), "w", &completion).await.unwrap();
    let task = bus.task(root).await.unwrap().unwrap();
    assert_eq!((task.status, task.result), (TaskStatus::Done, Some(json!("answered"))));
    assert!(task.finished_at.is_some());
}

#[tokio::test]
async fn failed_leaf_fails_the_task_with_its_reason() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let failure = Failure { reason: "no such model".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claimed.fence(), "w", &failure).await.unwrap();
    let task = bus.task(root).await.unwrap().unwrap();
    assert_eq!((task.status, task.error.as_deref()), (TaskStatus::Failed, Some("no such model")));
}

#[tokio::test]
async fn cancelled_task_refuses_the_completion_of_what_was_running() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    assert_eq!(bus.cancel(root).await.unwrap(), 1);
    assert!(!bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    let task = bus.task(root).await.unwrap().unwrap();
    assert_eq!((task.status, task.steps[0].status), (TaskStatus::Cancelled, MessageStatus::Cancelled));
    assert_eq!(bus.cancel(root).await.unwrap(), 0);
}

#[tokio::test]
async fn unknown_task_is_none() {
    let (bus, _database) = bus().await;
    assert!(bus.task(Uuid::now_v7()).await.unwrap().is_none());
    assert!(bus.message(Uuid::now_v7()).await.unwrap().is_none());
}

#[tokio::test]
async fn cancelling_catches_the_children_of_a_completion_that_was_under_way() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let mut transaction = bus.pool().begin().await.unwrap();
    let follow_ups = vec![NewMessage::new(ROUTE, None, json!({}))];
    let completion = Completion { follow_ups, ..Completion::default() };
    assert!(cogo_bus_core::Bus::complete_in(&mut transaction, &claimed.fence(), "w", &completion).await.unwrap());
    let cancelling = tokio_util::task::TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.cancel(root).await.unwrap() }
    });
    // the cancel waits for the row that the completion holds
    until_somebody_waits_for_a_lock(&bus, "bus.cancel").await;
    transaction.commit().await.unwrap();
    assert_eq!(cancelling.await.unwrap(), 1);
    assert_eq!(bus.task(root).await.unwrap().unwrap().status, TaskStatus::Cancelled);
}

#[tokio::test]
async fn large_task_leaves_the_queue_whole_and_others_stay() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let insert = "insert into public.agent_messages (service, role, tenant, payload, parent_id, retry_at, group_key)
                  select 'test', 'work', 'acme', '{}', case when n % 3 > 0 then $1 end,
                         case when n % 5 = 0 then clock_timestamp() + interval '1 hour' end,
                         case when n % 7 = 0 then 'group-' || n % 2 end
                    from generate_series(1, 300) as n";
    sqlx::query(insert).bind(root).execute(bus.pool()).await.unwrap();
    let held = claim(&bus, "w", 20).await;
    let cancelled = bus.cancel(root).await.unwrap();
    assert_eq!(cancelled, 201, "the root and two of three");
    assert_eq!(misplaced(&bus).await, 0);
    for held in held {
        bus.complete(&held.fence(), "w", &Completion::default()).await.unwrap();
    }
    loop {
        delays_to_pass(&bus).await;
        let more = claim(&bus, "w", 100).await;
        if more.is_empty() {
            break;
        }
        for held in more {
            assert!(bus.complete(&held.fence(), "w", &Completion::default()).await.unwrap());
        }
    }
    assert_eq!(statuses(&bus).await, [("cancelled".to_owned(), 201), ("done".to_owned(), 100)]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn steps_of_a_claim_that_marks_no_rows_are_shown_as_claimed() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let follow_ups = vec![NewMessage::new(ROUTE, None, json!({})); 80];
    let completion = Completion { follow_ups, ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &completion).await.unwrap());
    assert_eq!(claim(&bus, "w", 70).await.len(), 70);
    let task = bus.task(root).await.unwrap().unwrap();
    let claimed = task.steps.iter().filter(|step| step.status == MessageStatus::Claimed).count();
    assert_eq!((task.status, claimed), (TaskStatus::Running, 70));
}
