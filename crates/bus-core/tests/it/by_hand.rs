//! What operators change by hand, and rows that a function stumbles over: neither holds up any other message.

use cogo_bus_core::{Bus, Completion, Error, Failure};
use cogo_contracts::NewMessage;
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    bus, claim, claim_one, leases_to_pass, message, misplaced, numbered, statuses, times_to_live_to_pass,
};

async fn by_hand(bus: &Bus, statement: &str, id: Uuid) {
    sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).bind(id).execute(bus.pool()).await.unwrap();
}

fn broken() -> Failure {
    Failure { reason: "broken".to_owned(), retriable: false, retry_after: None }
}

/// A dead letter that somebody has put back into the queue by hand.
async fn requeued(bus: &Bus, new: &NewMessage) -> Uuid {
    let id = bus.enqueue(new).await.unwrap().id;
    let claimed = claim_one(bus, "w").await;
    bus.fail(&claimed.fence(), "w", &broken()).await.unwrap().unwrap();
    let requeue = "update public.agent_messages
                      set status = 'queued', done_at = null, error = null, claimed_by = null, claimed_at = null,
                          created_at = created_at - interval '1 hour'
                    where id = $1";
    by_hand(bus, requeue, id).await;
    assert_eq!(heal(bus).await, 1);
    id
}

async fn heal(bus: &Bus) -> i32 {
    sqlx::query_scalar("select bus.heal()").fetch_one(bus.pool()).await.unwrap()
}

/// Messages of which no dead letter can be recorded.
async fn poison(bus: &Bus, ids: &[Uuid]) {
    sqlx::raw_sql(
        "create table poisoned (id uuid);
         create function refuse() returns trigger language plpgsql as
           $$ begin if exists (select from public.poisoned p where p.id = new.id) then raise 'poison'; end if; return new; end $$;
         create trigger refuse before insert on bus.dead_letters for each row execute function refuse()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    sqlx::query("insert into poisoned select unnest($1)").bind(ids).execute(bus.pool()).await.unwrap();
}

#[tokio::test]
async fn dead_letter_that_was_requeued_by_hand_may_fail_again() {
    let (bus, _database) = bus().await;
    let id = requeued(&bus, &message(json!({}))).await;
    let again = claim_one(&bus, "w").await;
    assert_eq!(again.id, id);
    assert!(bus.fail(&again.fence(), "w", &broken()).await.unwrap().is_some());
    by_hand(&bus, "update public.agent_messages set status = 'queued', done_at = null where id = $1", id).await;
    assert_eq!(heal(&bus).await, 1);
    let again = claim_one(&bus, "w").await;
    assert_eq!(bus.fail_many(&[(again.fence(), broken())], "w").await.unwrap().len(), 1);
    assert_eq!(bus.dead_letters(5).await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_that_cannot_be_taken_back_keeps_no_other_lease() {
    let (bus, _database) = bus().await;
    let last = NewMessage { max_attempts: Some(1), ..message(json!({})) };
    let id = bus.enqueue(&last).await.unwrap().id;
    poison(&bus, &[id]).await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    assert_eq!(claim(&bus, "w", 4).await.len(), 4);
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 3);
    assert_eq!(claim(&bus, "w", 4).await.len(), 3);
    by_hand(&bus, "delete from poisoned where id = $1", id).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 1, "it was tried again");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn one_whose_time_to_live_cannot_end_stops_no_claim() {
    let (bus, _database) = bus().await;
    let short = NewMessage { ttl_ms: Some(600_000), ..message(json!({})) };
    let (id, other) = (bus.enqueue(&short).await.unwrap().id, bus.enqueue(&short).await.unwrap().id);
    poison(&bus, &[id]).await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    times_to_live_to_pass(&bus).await;
    assert_eq!(claim(&bus, "w", 4).await.len(), 1, "the one without a time to live");
    assert_eq!(bus.message(other).await.unwrap().unwrap()["status"], "failed");
    let later: bool = sqlx::query_scalar("select bool_and(at > clock_timestamp() + interval '10 s') from bus.expiring")
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert!(later, "it is not tried again by each claim");
}

#[tokio::test]
async fn time_to_live_that_was_changed_by_hand_counts() {
    let (bus, _database) = bus().await;
    let short = NewMessage { ttl_ms: Some(600_000), ..message(json!({})) };
    let longer = bus.enqueue(&short).await.unwrap().id;
    let endless = bus.enqueue(&short).await.unwrap().id;
    by_hand(&bus, "update public.agent_messages set expires_at = now() + interval '1 day' where id = $1", longer).await;
    by_hand(&bus, "update public.agent_messages set expires_at = null where id = $1", endless).await;
    sqlx::query("update bus.expiring set at = clock_timestamp()").execute(bus.pool()).await.unwrap();
    assert_eq!(bus.expire(10).await.unwrap(), 0);
    let due: Vec<(Uuid, bool)> =
        sqlx::query_as("select id, at > clock_timestamp() + interval '1 hour' from bus.expiring")
            .fetch_all(bus.pool())
            .await
            .unwrap();
    assert_eq!(due, [(longer, true)]);
    assert_eq!(claim(&bus, "w", 4).await.len(), 2);
}

#[tokio::test]
async fn whoever_stands_behind_a_row_that_was_deleted_goes_on() {
    let (bus, _database) = bus().await;
    let grouped = NewMessage { group_key: Some("g".to_owned()), ..message(json!({})) };
    let head = bus.enqueue(&grouped).await.unwrap().id;
    let next = bus.enqueue(&grouped).await.unwrap().id;
    let awaited = bus.enqueue(&NewMessage { delay_ms: Some(600_000), ..message(json!({})) }).await.unwrap().id;
    let waiting = bus.enqueue(&NewMessage { awaits: vec![awaited], ..message(json!({})) }).await.unwrap().id;
    for gone in [head, awaited] {
        by_hand(&bus, "delete from public.agent_messages where id = $1", gone).await;
    }
    assert!(claim(&bus, "w", 4).await.is_empty());
    let stuck: Vec<Uuid> = sqlx::query_scalar("select id from bus.misplaced() where status = 'queued' order by id")
        .fetch_all(bus.pool())
        .await
        .unwrap();
    assert_eq!(stuck, [next, waiting]);
    heal(&bus).await;
    let mut free: Vec<Uuid> = claim(&bus, "w", 4).await.into_iter().map(|one| one.id).collect();
    free.sort_unstable();
    assert_eq!(free, [next, waiting]);
    assert_eq!(heal(&bus).await, 0);
}

#[tokio::test]
async fn nulls_among_what_ended_cost_no_other_its_end() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(4)).await.unwrap();
    let ids: Vec<Uuid> = claim(&bus, "w", 4).await.into_iter().map(|one| one.id).collect();
    let done: Vec<Uuid> = sqlx::query_scalar(
        "select unnest(bus.complete_batch(array[$1, null, $2], '{1,1,1}', 'w', '{null,null,null}', '{null,null,null}', null))",
    )
    .bind(ids[0])
    .bind(ids[1])
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert_eq!(done.len(), 2);
    let failed: i64 = sqlx::query_scalar("select count(*) from bus.fail_many(array[$1, null], '{1,1}', 'w')")
        .bind(ids[2])
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(failed, 1);
    let status: String = sqlx::query_scalar("select bus.fail($1, 'w', 1::smallint, 'broken', null)")
        .bind(ids[3])
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(status, "queued", "what is not said is left out");
}

#[tokio::test]
async fn groups_and_awaiting_refuse_a_transaction_that_sees_no_commits() {
    let (bus, _database) = bus().await;
    let grouped = NewMessage { group_key: Some("g".to_owned()), ..message(json!({})) };
    bus.enqueue(&grouped).await.unwrap();
    let plain = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim(&bus, "w", 2).await;
    let delayed = bus.enqueue(&NewMessage { delay_ms: Some(600_000), ..message(json!({})) }).await.unwrap().id;
    bus.enqueue(&NewMessage { awaits: vec![delayed], ..message(json!({})) }).await.unwrap();
    for isolation in ["begin isolation level repeatable read", "begin isolation level serializable"] {
        let mut transaction = bus.pool().begin_with(isolation).await.unwrap();
        let refused = Bus::enqueue_in(&mut transaction, &grouped).await.unwrap_err();
        assert!(format!("{refused:?}").contains("READ COMMITTED"));
        transaction.rollback().await.unwrap();
        for claimed in &held {
            let mut transaction = bus.pool().begin_with(isolation).await.unwrap();
            let ended = Bus::complete_in(&mut transaction, &claimed.fence(), "w", &Completion::default()).await;
            if claimed.id == plain {
                assert!(ended.unwrap(), "nobody else is concerned");
            } else {
                assert!(matches!(ended, Err(Error::Database(_) | Error::Refused { .. })), "{ended:?}");
            }
            transaction.rollback().await.unwrap();
        }
    }
}

#[tokio::test]
async fn cancelling_rewrites_a_claim_once() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let follow_ups = vec![NewMessage::new(crate::support::ROUTE, None, json!({})); 800];
    let with_children = Completion { follow_ups, ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &with_children).await.unwrap());
    bus.enqueue_many(&numbered(3)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1000).await.len(), 803);
    assert_eq!(bus.cancel(root).await.unwrap(), 800);
    let left: Vec<i32> = sqlx::query_scalar("select remaining from bus.claims").fetch_all(bus.pool()).await.unwrap();
    assert_eq!(left, [3]);
    // each writing of this claim takes some 15 kB
    let size = "select pg_total_relation_size('bus.claims') < 1000000";
    assert!(sqlx::query_scalar::<_, bool>(size).fetch_one(bus.pool()).await.unwrap());
    assert_eq!(statuses(&bus).await, [("cancelled".to_owned(), 800), ("done".to_owned(), 1), ("queued".to_owned(), 3)]);
    // who sends meanwhile may not have committed, so each cancellation is followed up, but as one
    bus.cancel(root).await.unwrap();
    bus.reclaim(10).await.unwrap();
    let noted: i64 = sqlx::query_scalar("select count(*) from bus.unsettled").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(noted, 1);
}

#[tokio::test]
async fn dead_letter_under_a_root_that_is_a_step_is_replayed_once() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let follow_ups = vec![NewMessage::new(crate::support::ROUTE, None, json!({}))];
    assert!(bus.complete(&held.fence(), "w", &Completion { follow_ups, ..Completion::default() }).await.unwrap());
    let step = claim_one(&bus, "w").await;
    assert!(bus.complete(&step.fence(), "w", &Completion::default()).await.unwrap());
    let lost = bus.enqueue(&message(json!({}))).await.unwrap().id;
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken()).await.unwrap().unwrap();
    // as senders could leave it once
    sqlx::query("update public.agent_messages set root_id = $2 where id = $1")
        .bind(lost)
        .bind(step.id)
        .execute(bus.pool())
        .await
        .unwrap();
    for expected in [1, 0] {
        assert_eq!(bus.replay_many(None, None, 50.0, 10).await.unwrap().len(), expected);
    }
    assert_ne!(step.id, root);
}
