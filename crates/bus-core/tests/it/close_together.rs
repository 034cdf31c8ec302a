//! Large claims and completions: one look for what was sent close together, a search for each of what was not.

use std::{collections::HashSet, time::Duration};

use cogo_bus_core::{Bus, Claimed, Completion, Failure, Fence, Settled};
use cogo_contracts::{NewMessage, Route};
use serde_json::json;
use sqlx::{Postgres, Transaction};
use uuid::{Builder, Uuid};

use crate::support::{LEASE, ROUTE, bus, claim, claim_one, leases_to_pass, message, misplaced, statuses};

/// More than a claim marks one by one.
const MANY: u16 = 200;

/// `MANY` ids from now on, so many milliseconds apart.
async fn ids(bus: &Bus, apart_ms: u64) -> Vec<Uuid> {
    let now: i64 = sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
        .fetch_one(bus.pool())
        .await
        .unwrap();
    let id = |number: u16| {
        let at = now.unsigned_abs() + apart_ms * u64::from(number);
        let mut rest = [0; 10];
        rest[..2].copy_from_slice(&number.to_be_bytes());
        Builder::from_unix_timestamp_millis(at, &rest).into_uuid()
    };
    (0..MANY).map(id).collect()
}

/// Looks into the indexes of messages within this transaction.
async fn looks(transaction: &mut Transaction<'_, Postgres>) -> i64 {
    sqlx::query_scalar(
        "select sum(idx_scan)::bigint from pg_stat_xact_user_tables where schemaname = 'bus' and relname like 'messages\\_%'",
    )
    .fetch_one(&mut **transaction)
    .await
    .unwrap()
}

/// How many looks claiming and completing everything takes.
async fn looks_of_claim_and_completion(bus: &Bus) -> (i64, i64) {
    let mut transaction = bus.pool().begin().await.unwrap();
    let before = looks(&mut transaction).await;
    let claimed: Vec<(Uuid, i16)> = sqlx::query_as("select id, attempt from bus.claim($1, $2, 0, 'w', 1000)")
        .bind(ROUTE.service())
        .bind(ROUTE.role())
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(claimed.len(), usize::from(MANY));
    let after_claim = looks(&mut transaction).await;
    let (ids, attempts): (Vec<Uuid>, Vec<i16>) = claimed.into_iter().unzip();
    let nothing: Vec<Option<String>> = vec![None; ids.len()];
    let done: i64 = sqlx::query_scalar("select count(*) from bus.complete_many($1, $2, 'w', '{}', $3, $3)")
        .bind(ids)
        .bind(attempts)
        .bind(nothing)
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(done, i64::from(MANY));
    let after_completion = looks(&mut transaction).await;
    transaction.commit().await.unwrap();
    (after_claim - before, after_completion - after_claim)
}

#[tokio::test]
async fn what_was_sent_together_is_found_by_one_look() {
    let (bus, _database) = bus().await;
    let ids = ids(&bus, 0).await;
    let messages: Vec<_> = ids.iter().map(|id| NewMessage { id: Some(*id), ..message(json!({})) }).collect();
    bus.enqueue_many(&messages).await.unwrap();
    assert_eq!(looks_of_claim_and_completion(&bus).await, (1, 1));
    assert_eq!(statuses(&bus).await, [("done".to_owned(), i64::from(MANY))]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn what_was_sent_apart_is_searched_for_one_by_one() {
    let (bus, _database) = bus().await;
    let ids = ids(&bus, 10).await;
    let messages: Vec<_> = ids.iter().map(|id| NewMessage { id: Some(*id), ..message(json!({})) }).collect();
    bus.enqueue_many(&messages).await.unwrap();
    let (claim, completion) = looks_of_claim_and_completion(&bus).await;
    let each = i64::from(MANY);
    assert!((each..2 * each).contains(&claim) && (each..2 * each).contains(&completion), "{claim}, {completion}");
    assert_eq!(statuses(&bus).await, [("done".to_owned(), each)]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn what_stands_between_belongs_to_others() {
    let (bus, _database) = bus().await;
    let ids = ids(&bus, 0).await;
    // every second one is of another route, every fifth was claimed by somebody else before
    let other = Route::constant("test", "other");
    let messages: Vec<_> = (0u16..)
        .zip(&ids)
        .map(|(number, id)| {
            let route = if number % 2 == 0 { ROUTE } else { other.clone() };
            NewMessage { id: Some(*id), route, ..message(json!({"number": number})) }
        })
        .collect();
    bus.enqueue_many(&messages).await.unwrap();
    let of_others = claim(&bus, "other", 20).await;
    let mine = claim(&bus, "w", 1000).await;
    let numbers: HashSet<u64> = mine.iter().filter_map(|claimed| claimed.payload["number"].as_u64()).collect();
    assert!(mine.len() == 80 && numbers.len() == 80 && numbers.iter().all(|number| number % 2 == 0), "{numbers:?}");
    assert!(of_others.iter().all(|theirs| mine.iter().all(|claimed| claimed.id != theirs.id)));
    // of what is named by both, only what is held is ended
    let both: Vec<_> = mine.iter().chain(&of_others).map(|claimed| (claimed.fence(), Completion::default())).collect();
    let done: HashSet<Uuid> = bus.complete_many(&both, "w").await.unwrap().into_iter().collect();
    assert_eq!(done, mine.iter().map(|claimed| claimed.id).collect());
    let left = i64::from(MANY) - 80 - 20;
    let now = statuses(&bus).await;
    assert_eq!(
        now,
        [("claimed", 20), ("done", 80), ("queued", left)].map(|(status, count)| (status.to_owned(), count))
    );
    assert_eq!(misplaced(&bus).await, 0);
}

/// Completions are sent in the order in which a claim keeps its ids.
const ONLY_IN_ORDER: &str = "alter function bus.complete_batch set schema public;
    create function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[]) returns uuid[]
    language plpgsql as $$ begin
      if $1 <> array(select i from unnest($1) as i order by i) then raise exception 'out of order'; end if;
      return public.complete_batch($1, $2, $3, $4, $5, $6);
    end $$;";

async fn claims(bus: &Bus) -> i64 {
    sqlx::query_scalar("select count(*) from bus.claims").fetch_one(bus.pool()).await.unwrap()
}

/// Claims `MANY` messages that were sent together, the youngest first, each with a number.
async fn a_whole_claim(bus: &Bus) -> Vec<(Fence, Completion)> {
    let messages: Vec<_> = (0..MANY)
        .zip(ids(bus, 0).await)
        .rev()
        .map(|(number, id)| NewMessage { id: Some(id), ..message(json!({"number": number})) })
        .collect();
    bus.enqueue_many(&messages).await.unwrap();
    let ended = |claimed: Claimed| {
        let result = Some(json!({"number": claimed.payload["number"]}));
        (claimed.fence(), Completion { result, ..Completion::default() })
    };
    claim(bus, "w", MANY).await.into_iter().map(ended).collect()
}

#[tokio::test]
async fn a_claim_that_ends_whole_gives_each_its_own_result_in_whatever_order() {
    let (bus, _database) = bus().await;
    let mut ended = a_whole_claim(&bus).await;
    let in_order: bool =
        sqlx::query_scalar("select ids = array(select i from unnest(ids) as i order by i) from bus.claims")
            .fetch_one(bus.pool())
            .await
            .unwrap();
    assert!(in_order);
    sqlx::raw_sql(ONLY_IN_ORDER).execute(bus.pool()).await.unwrap();
    ended.rotate_left(77);
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), usize::from(MANY));
    let own =
        "select count(*) from public.agent_messages where status = 'done' and result -> 'number' = payload -> 'number'";
    let own: i64 = sqlx::query_scalar(own).fetch_one(bus.pool()).await.unwrap();
    assert_eq!((own, claims(&bus).await, misplaced(&bus).await), (i64::from(MANY), 0, 0));
}

#[tokio::test]
async fn of_a_whole_claim_only_what_is_still_held_is_ended() {
    let (bus, _database) = bus().await;
    let ended = a_whole_claim(&bus).await;
    // as if it had been taken back and claimed by another meanwhile
    sqlx::query("update public.agent_messages set attempts = 1 where id = $1")
        .bind(ended[7].0.id)
        .execute(bus.pool())
        .await
        .unwrap();
    let done = bus.complete_many(&ended, "w").await.unwrap();
    assert!(done.len() == usize::from(MANY) - 1 && !done.contains(&ended[7].0.id));
    assert_eq!(claims(&bus).await, 1, "what did not end is not counted off");
    assert!(bus.complete_many(&ended, "w").await.unwrap().is_empty(), "once");
    assert!(bus.complete_many(&ended, "another").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_whole_claim_of_several_attempts_ends_whole() {
    let (bus, _database) = bus().await;
    let ids = ids(&bus, 0).await;
    let with = |id: Uuid, priority: i16| NewMessage { id: Some(id), priority: Some(priority), ..message(json!({})) };
    bus.enqueue(&with(ids[1], 100)).await.unwrap();
    let once = claim_one(&bus, "w").await.fence();
    let again = Failure { reason: "once more".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    assert_eq!(bus.fail(&once, "w", &again).await.unwrap(), Some(Settled::Again));
    bus.enqueue(&with(ids[0], 0)).await.unwrap();
    let ended: Vec<_> = claim(&bus, "w", 2).await.iter().map(|held| (held.fence(), Completion::default())).collect();
    let as_it_stands: (Vec<Uuid>, Vec<i16>) =
        sqlx::query_as("select ids, attempts from bus.claims").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(as_it_stands, (ids[..2].to_vec(), vec![1, 2]));
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 2);
    assert_eq!((claims(&bus).await, misplaced(&bus).await), (0, 0));
}

#[tokio::test]
async fn a_whole_claim_whose_lease_has_passed_is_not_ended() {
    let (bus, _database) = bus().await;
    let ended = a_whole_claim(&bus).await;
    leases_to_pass(&bus).await;
    assert!(bus.complete_many(&ended, "w").await.unwrap().is_empty());
    assert_eq!(bus.reclaim(1000).await.unwrap(), u64::from(MANY));
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn a_whole_claim_that_an_extension_copied_is_counted_off_where_limits_count_it() {
    let (bus, _database) = bus().await;
    let ended = a_whole_claim(&bus).await;
    let mut held_up = bus.pool().begin().await.unwrap();
    let original: i64 =
        sqlx::query_scalar("select claim from bus.claims for update").fetch_one(&mut *held_up).await.unwrap();
    let fences: Vec<Fence> = ended.iter().map(|(fence, _)| fence.clone()).collect();
    // for less than is left of the first lease: the copy stands before it in the index
    assert_eq!(bus.extend(&fences, "w", LEASE / 2).await.unwrap().len(), usize::from(MANY));
    held_up.commit().await.unwrap();
    assert_eq!(claims(&bus).await, 2, "the locked one, and one for the new lease");
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), usize::from(MANY));
    let copy: i64 = sqlx::query_scalar("select claim from bus.claims").fetch_one(bus.pool()).await.unwrap();
    assert!(copy > original);
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(1000).await.unwrap(), 0, "everything has ended");
    assert_eq!((claims(&bus).await, misplaced(&bus).await), (0, 0));
}
