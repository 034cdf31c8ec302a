//! What becomes of the work of a child while the database is away, says nothing or refuses what it is given.

use std::{sync::atomic::Ordering, time::Duration};

use cogo_bus_core::{Bus, ClaimRequest};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    PATIENCE, ROUTE,
    child_support::{INSTANCE, Parent},
    child_work::Workshop,
};
use crate::{ChildEvent, Ended, children::Pace};

/// Longer than a test takes.
const LONG: Pace = Pace { lease: Duration::from_secs(600), patience: Duration::from_secs(600) };

/// As a database that is just starting answers; how often it was asked is not undone.
const NO_END: &str = "create sequence public.asked;
    alter function bus.complete rename to hidden;
    create function bus.complete(uuid, text, smallint, jsonb, text, text, jsonb) returns boolean language plpgsql as $$ begin
      perform nextval('public.asked');
      raise exception 'away' using errcode = '57P03';
    end $$;";
const ENDS_AGAIN: &str = "drop function bus.complete;
    alter function bus.hidden rename to complete;";
const NO_CLAIM: &str = "create sequence public.asked;
    alter function bus.claim rename to hidden;
    create function bus.claim(text, text, integer, text, integer, bigint, text) returns setof bus.hidden_row
    language plpgsql as $$ begin
      perform nextval('public.asked');
      raise exception 'away' using errcode = '57P03';
    end $$;";
const CLAIMS_AGAIN: &str = "drop function bus.claim;
    alter function bus.hidden rename to claim;";
/// As a connection whose other end is gone answers: never.
const SILENT_CLAIM: &str = "create sequence public.asked;
    alter function bus.claim rename to hidden;
    create function bus.claim(text, text, integer, text, integer, bigint, text) returns setof bus.hidden_row
    language plpgsql as $$ begin
      perform nextval('public.asked');
      perform pg_sleep(600);
    end $$;";
const SILENT_EXTENSION: &str = "alter function bus.extend rename to hidden;
    create function bus.extend(uuid[], smallint[], text, bigint) returns table (id uuid) language plpgsql as $$ begin
      perform pg_sleep(600);
    end $$;";
/// What a claim answers of each message.
const ROW: &str = "create type bus.hidden_row as (
      id uuid, attempt smallint, max_attempts smallint, tenant text, payload jsonb, headers jsonb, root_id uuid,
      parent_id uuid, reply_to text, priority smallint, created_at timestamptz, waited_ms bigint, remaining_ms bigint);";

async fn run(bus: &Bus, statements: &'static str) {
    sqlx::raw_sql(statements).execute(bus.pool()).await.unwrap();
}

/// Waits until the function in the place of the hidden one was called.
async fn until_asked(bus: &Bus) {
    let asked = async {
        while !sqlx::query_scalar::<_, bool>("select is_called from public.asked").fetch_one(bus.pool()).await.unwrap()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("it is asked");
}

async fn attempts(bus: &Bus, id: Uuid) -> i16 {
    let attempts = "select attempts from public.agent_messages where id = $1";
    sqlx::query_scalar(attempts).bind(id).fetch_one(bus.pool()).await.unwrap()
}

#[tokio::test]
async fn end_that_is_not_taken_yet_is_written_once_the_database_is_back() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    run(&shop.bus, NO_END).await;
    let id = shop.send(json!({})).await;
    shop.permits.add_permits(1);
    until_asked(&shop.bus).await;
    run(&shop.bus, ENDS_AGAIN).await;
    shop.until(id, "done").await;
    assert_eq!(shop.begun.load(Ordering::SeqCst), 1);
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn result_against_the_contract_is_the_end_of_its_message() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    shop.permits.add_permits(2);
    for (what, reason) in [("too large", "result at most 1 mib"), ("not to be stored", "The bus refused the request")] {
        let id = shop.send(json!({"what": what})).await;
        shop.until(id, "failed").await;
        let task = shop.bus.task(id).await.unwrap().unwrap();
        assert!(task.error.as_deref().unwrap().contains(reason), "{task:?}");
        assert_eq!(task.steps[0].attempts, 1);
    }
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn completion_that_the_database_always_refuses_ends_as_a_failure() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    run(&shop.bus, "alter function bus.complete rename to hidden").await;
    let tenant = Tenant::new("default").unwrap();
    let message = NewMessage { max_attempts: Some(1), ..NewMessage::new(ROUTE, Some(tenant), json!({})) };
    let id = shop.bus.enqueue(&message).await.unwrap().id;
    shop.permits.add_permits(1);
    shop.until(id, "failed").await;
    let task = shop.bus.task(id).await.unwrap().unwrap();
    assert!(task.error.as_deref().unwrap().contains("the database refuses the completion"), "{task:?}");
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn work_that_panics_before_its_first_step_is_tried_again() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    let id = shop.send(json!({"what": "panic at once"})).await;
    let tried = async {
        while attempts(&shop.bus, id).await < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, tried).await.expect("it is tried again");
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn message_whose_time_to_live_passes_at_its_child_fails_without_waiting_for_its_lease() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    // on a machine that stands still its time may pass before anybody begins with it
    while shop.begun.load(Ordering::SeqCst) == 0 {
        let tenant = Tenant::new("default").unwrap();
        let message = NewMessage { ttl_ms: Some(1_000), ..NewMessage::new(ROUTE, Some(tenant), json!({})) };
        let id = shop.bus.enqueue(&message).await.unwrap().id;
        shop.until(id, "failed").await;
        let error = shop.bus.task(id).await.unwrap().unwrap().error.unwrap();
        let was_begun = shop.begun.load(Ordering::SeqCst) == 1;
        assert!(!was_begun || error == "time to live passed while it was worked on", "{error}");
    }
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn message_whose_time_passes_while_it_waits_for_other_work_is_not_started() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, LONG);
    let mut errors = Vec::new();
    // on a machine that stands still the time of both may pass before anybody begins with them
    while shop.begun.load(Ordering::SeqCst) == 0 {
        let payload = json!({"what": "outlast"});
        let message = NewMessage::new(ROUTE, Some(Tenant::new("default").unwrap()), payload);
        let message = NewMessage { ttl_ms: Some(1_000), ..message };
        let sent = shop.bus.enqueue_many(&[message.clone(), message]).await.unwrap();
        errors.clear();
        for sent in sent {
            shop.until(sent.id, "failed").await;
            errors.push(shop.bus.task(sent.id).await.unwrap().unwrap().error.unwrap());
        }
    }
    assert_eq!(shop.begun.load(Ordering::SeqCst), 1);
    assert!(errors.contains(&"time to live passed before it was started".to_owned()), "{errors:?}");
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn work_whose_lease_cannot_be_extended_is_dropped() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open_at(&parent, &child, Pace { lease: Duration::from_secs(2), ..LONG });
    run(&shop.bus, SILENT_EXTENSION).await;
    shop.send(json!({})).await;
    let dropped = async {
        while shop.gone.load(Ordering::SeqCst) == 0 {
            // a busy machine may outlast the lease before the work has begun
            shop.bus.reclaim(10).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, dropped).await.expect("the work goes on without a lease");
    shop.permits.add_permits(100);
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_whose_claim_gets_no_answer_ends_when_it_is_told_to() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let bus = Bus::new(parent.database.pool.clone());
    run(&bus, ROW).await;
    run(&bus, SILENT_CLAIM).await;
    let shop = Workshop::open_at(&parent, &child, LONG);
    until_asked(&bus).await;
    shop.stop.cancel();
    shop.ended().await;
    assert_eq!(child.ended().await.0, Ended::Drained);
    parent.stop().await;
}

#[tokio::test]
async fn claim_that_gets_no_answer_is_made_again() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let bus = Bus::new(parent.database.pool.clone());
    run(&bus, ROW).await;
    run(&bus, SILENT_CLAIM).await;
    let shop = Workshop::open_at(&parent, &child, Pace { patience: Duration::from_secs(2), ..LONG });
    until_asked(&bus).await;
    run(&bus, CLAIMS_AGAIN).await;
    let id = shop.send(json!({})).await;
    shop.permits.add_permits(1);
    shop.until(id, "done").await;
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn what_a_claim_took_whose_answer_was_lost_is_handed_back_before_its_lease_ends() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let bus = Bus::new(parent.database.pool.clone());
    let message = NewMessage::new(ROUTE, Some(Tenant::new("default").unwrap()), json!({}));
    let id = bus.enqueue(&message).await.unwrap().id;
    let holder = child.handle.seated.borrow().as_ref().unwrap().holder.clone();
    let request =
        ClaimRequest { route: &ROUTE, holder: &holder, instance: Some(INSTANCE), max_messages: 1, lease: LONG.lease };
    assert_eq!(bus.claim(&request).await.unwrap().len(), 1, "in the database it is claimed");
    run(&bus, ROW).await;
    run(&bus, NO_CLAIM).await;
    let shop = Workshop::open_at(&parent, &child, LONG);
    until_asked(&bus).await;
    run(&bus, CLAIMS_AGAIN).await;
    shop.permits.add_permits(1);
    shop.until(id, "done").await;
    assert_eq!(attempts(&bus, id).await, 2);
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}
