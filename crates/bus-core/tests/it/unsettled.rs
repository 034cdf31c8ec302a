//! What was decided also holds for those who were under way and did not see it.

use cogo_bus_core::{Bus, Claimed, Completion, CountedBy, Failure, Limit, Overdue, overdue};
use cogo_contracts::NewMessage;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{
    LEASE, PATIENCE, PAUSE, ROUTE, bus, claim, claim_one, leases_to_pass, message, misplaced, numbered, statuses,
};

const NOTHING: Overdue = Overdue { leases: false, outlived: false, schedule: None };

/// Makes it a while ago that something was decided.
async fn minute_to_pass(bus: &Bus) {
    sqlx::query("update bus.unsettled set at = at - interval '2 minutes'").execute(bus.pool()).await.unwrap();
}

async fn is_settled(bus: &Bus) -> bool {
    sqlx::query_scalar("select not exists (select from bus.unsettled)").fetch_one(bus.pool()).await.unwrap()
}

/// Tests beside this one have transactions as well, and these too may not have seen it.
async fn until_settled(bus: &Bus) {
    minute_to_pass(bus).await;
    let settling = async {
        while !is_settled(bus).await {
            bus.reclaim(10).await.unwrap();
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, settling).await.expect("nobody is under way");
}

async fn child_of(parent: Uuid, sender: &mut PgConnection) -> Uuid {
    let insert = "insert into public.agent_messages (service, role, tenant, payload, parent_id)
                  values ('test', 'work', 'acme', '{}', $1) returning id";
    sqlx::query_scalar(insert).bind(parent).fetch_one(sender).await.unwrap()
}

async fn task(bus: &Bus, id: Uuid) -> String {
    sqlx::query_scalar("select status from public.agent_messages where id = $1")
        .bind(id)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn child_that_is_committed_after_its_task_was_cancelled_ends_too() {
    let (bus, _database) = bus().await;
    for it_runs in [false, true] {
        let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
        let mut sender = bus.pool().begin().await.unwrap();
        let child = child_of(root, &mut sender).await;
        assert_eq!(bus.cancel(root).await.unwrap(), 1);
        assert!(overdue(bus.pool()).await.unwrap().leases, "there is something to see to");
        assert_eq!(bus.reclaim(10).await.unwrap(), 0);
        minute_to_pass(&bus).await;
        assert_eq!(bus.reclaim(10).await.unwrap(), 0);
        assert!(!is_settled(&bus).await, "as long as somebody may not have seen it");
        sender.commit().await.unwrap();
        let held = if it_runs { claim(&bus, "w", 1).await } else { Vec::new() };
        assert_eq!(bus.reclaim(10).await.unwrap(), 0);
        assert_eq!(task(&bus, child).await, "cancelled");
        for held in held {
            assert!(!bus.complete(&held.fence(), "w", &Completion::default()).await.unwrap());
        }
        until_settled(&bus).await;
        assert_eq!(overdue(bus.pool()).await.unwrap(), NOTHING);
        assert_eq!(misplaced(&bus).await, 0);
    }
}

#[tokio::test]
async fn what_a_late_child_has_sent_meanwhile_ends_too() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let mut sender = bus.pool().begin().await.unwrap();
    child_of(root, &mut sender).await;
    bus.cancel(root).await.unwrap();
    sender.commit().await.unwrap();
    let child = claim_one(&bus, "w").await;
    let completion = Completion { follow_ups: vec![message(json!({}))], ..Completion::default() };
    assert!(bus.complete(&child.fence(), "w", &completion).await.unwrap());
    bus.reclaim(10).await.unwrap();
    assert_eq!(statuses(&bus).await, [("cancelled".to_owned(), 2), ("done".to_owned(), 1)]);
}

#[tokio::test]
async fn replay_of_what_had_failed_before_its_task_was_cancelled_runs() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let failing = Completion { follow_ups: vec![message(json!({}))], ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &failing).await.unwrap());
    let failed = claim_one(&bus, "w").await;
    child_of(root, &mut bus.pool().acquire().await.unwrap()).await;
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&failed.fence(), "w", &failure).await.unwrap();
    assert_eq!(bus.cancel(root).await.unwrap(), 1);
    let replay = bus.replay(failed.id).await.unwrap();
    bus.reclaim(10).await.unwrap();
    assert_eq!(claim_one(&bus, "w").await.id, replay);
}

#[tokio::test]
async fn claim_that_was_open_while_its_route_was_limited_counts() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&[message(json!({})), message(json!({})), message(json!({}))]).await.unwrap();
    let mut claiming = bus.pool().begin().await.unwrap();
    let claimed: Vec<Uuid> = sqlx::query_scalar("select id from bus.claim('test', 'work', 0, 'early', 1, $1)")
        .bind(i64::try_from(LEASE.as_millis()).unwrap())
        .fetch_all(&mut *claiming)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    let limit =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: Some(1), per_second: None, burst: None };
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    bus.reclaim(10).await.unwrap();
    claiming.commit().await.unwrap();
    bus.reclaim(10).await.unwrap();
    assert!(claim(&bus, "late", 3).await.is_empty(), "one runs");
    until_settled(&bus).await;
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    assert_eq!(claim(&bus, "late", 3).await.len(), 1);
}

#[tokio::test]
async fn late_children_wait_for_nobody_and_hold_up_no_lease() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let mut sender = bus.pool().begin().await.unwrap();
    let of_group = NewMessage { group_key: Some("a".to_owned()), ..message(json!({})) };
    let grouped = "insert into public.agent_messages (service, role, tenant, payload, parent_id, group_key)
                   values ('test', 'work', 'acme', '{}', $1, 'a') returning id";
    let children: [Uuid; 2] = [
        sqlx::query_scalar(grouped).bind(root).fetch_one(&mut *sender).await.unwrap(),
        child_of(root, &mut sender).await,
    ];
    bus.cancel(root).await.unwrap();
    sender.commit().await.unwrap();
    let mut other = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut other, &of_group).await.unwrap();
    let held = claim(&bus, "w", 2).await;
    assert_eq!(held.len(), 2);
    // a handler that completes in a transaction of its own
    let mut handler = bus.pool().begin().await.unwrap();
    let second = held.iter().find(|held| held.id == children[1]).unwrap();
    assert!(Bus::complete_in(&mut handler, &second.fence(), "w", &Completion::default()).await.unwrap());
    tokio::time::timeout(PATIENCE, bus.reclaim(10)).await.expect("it waits").unwrap();
    assert_eq!(task(&bus, children[0]).await, "claimed", "somebody has its group");
    other.rollback().await.unwrap();
    handler.rollback().await.unwrap();
    bus.reclaim(10).await.unwrap();
    for child in children {
        assert_eq!(task(&bus, child).await, "cancelled");
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn late_child_of_what_was_done_ends_with_its_task() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    assert!(bus.complete(&held.fence(), "w", &Completion::default()).await.unwrap());
    let mut sender = bus.pool().begin().await.unwrap();
    let child = child_of(root, &mut sender).await;
    assert_eq!(bus.cancel(root).await.unwrap(), 0);
    sender.commit().await.unwrap();
    bus.reclaim(10).await.unwrap();
    assert_eq!(task(&bus, child).await, "cancelled");
    let later = child_of(root, &mut bus.pool().acquire().await.unwrap()).await;
    bus.reclaim(10).await.unwrap();
    assert_eq!(task(&bus, later).await, "queued", "it was sent afterwards");
}

#[tokio::test]
async fn claim_of_one_tenant_counts_for_his_limit() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&[message(json!({})), message(json!({}))]).await.unwrap();
    claim_one(&bus, "early").await;
    let limit =
        Limit { counted_by: CountedBy::Tenant, subject: None, max_running: Some(1), per_second: None, burst: None };
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    assert!(claim(&bus, "late", 1).await.is_empty(), "one of this tenant runs");
}

/// Somebody's own transaction has recorded the end of one message and stays open; a join awaits that one and others.
#[tokio::test]
async fn ends_wait_for_nobody_who_keeps_what_awaits_them() {
    let (bus, _database) = bus().await;
    for commits in [true, false] {
        let sent = bus.enqueue_many(&numbered(5)).await.unwrap();
        let ids: Vec<Uuid> = sent.iter().map(|sent| sent.id).collect();
        let join = NewMessage { awaits: ids[..4].to_vec(), ..message(json!({})) };
        let join = bus.enqueue(&join).await.unwrap().id;
        let mut claimed = claim(&bus, "w", 5).await;
        claimed.sort_by_key(|message| ids.iter().position(|id| *id == message.id));
        let fences: Vec<_> = claimed.iter().map(Claimed::fence).collect();
        let plain = Completion::default();

        let mut keeper = bus.pool().begin().await.unwrap();
        assert!(Bus::complete_in(&mut keeper, &fences[0], "w", &plain).await.unwrap());
        let ends = async {
            let both = [(fences[1].clone(), plain.clone()), (fences[4].clone(), plain.clone())];
            assert_eq!(bus.complete_many(&both, "w").await.unwrap().len(), 2);
            assert!(bus.complete(&fences[2], "w", &plain).await.unwrap());
            let failure = Failure { reason: "on purpose".to_owned(), retriable: false, retry_after: None };
            assert_eq!(bus.fail_many(&[(fences[3].clone(), failure)], "w").await.unwrap().len(), 1);
        };
        tokio::time::timeout(PATIENCE, ends).await.expect("they wait for a transaction of another message");
        assert!(overdue(bus.pool()).await.unwrap().leases, "there is something to see to");
        bus.reclaim(10).await.unwrap();
        assert_eq!(claim(&bus, "w", 10).await.len(), 0, "not all have ended for certain");

        if commits {
            keeper.commit().await.unwrap();
        } else {
            keeper.rollback().await.unwrap();
            assert!(bus.complete(&fences[0], "w", &plain).await.unwrap());
        }
        bus.reclaim(10).await.unwrap();
        let joined = claim_one(&bus, "w").await;
        assert_eq!(joined.id, join);
        assert!(bus.complete(&joined.fence(), "w", &plain).await.unwrap());
        assert!(is_settled(&bus).await, "what was counted down is noted no longer");
        assert_eq!(misplaced(&bus).await, 0);
    }
}
