//! The example workers in Python and TypeScript beside one in Rust: killed, frozen, stopped, and nothing done twice.

mod batches;
mod contract;
mod fleet;
mod language;
pub(crate) mod line;
mod outages;
mod sources;
mod whole;
mod work;

use cogo_bus_core::{Bus, Claimed, Completion, Failure};
use cogo_contracts::NewMessage;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::support::{LEASE, bus, claim, claim_for, claim_one};
use language::{
    Language, PATIENCE, PAUSE, SHORT_LEASE, at_first, begun, ended, exit_code, hangs, in_both_languages, order,
    order_for, signal,
};

in_both_languages!(
    worker_hands_back_at_sigterm_what_it_cannot_finish,
    worker_finishes_within_its_grace_what_it_has_in_hand,
    worker_that_slept_past_its_lease_changes_nothing,
    worker_drops_what_is_cancelled,
);

async fn count(bus: &Bus, condition: &str) -> i64 {
    let query = format!("select count(*) from public.agent_messages where {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(bus.pool()).await.unwrap()
}

async fn events(bus: &Bus, id: Uuid, kind: &str) -> usize {
    let kinds: Vec<String> = sqlx::query_scalar("select kind from public.bus_events where message_id = $1")
        .bind(id)
        .fetch_all(bus.pool())
        .await
        .unwrap();
    kinds.iter().filter(|found| *found == kind).count()
}

/// What the examples do, in Rust.
async fn obey(bus: &Bus, claimed: &Claimed, holder: &str) {
    let fence = claimed.fence();
    bus.emit(&fence, holder, 1, &[json!({"holder": holder}).to_string()], LEASE).await.unwrap();
    // what is said of this attempt goes before what is said of all
    let of_this = &claimed.payload["attempts"][claimed.attempt.to_string()]["failure"];
    let ordered = if of_this.is_null() { &claimed.payload["failure"] } else { of_this };
    if !ordered.is_null() {
        let retriable = ordered["retriable"].as_bool().unwrap_or(true);
        let failure = Failure { reason: "as ordered".to_owned(), retriable, retry_after: None };
        bus.fail(&fence, holder, &failure).await.unwrap().unwrap();
        return;
    }
    let follow_ups = claimed.payload["follow_ups"].as_array().into_iter().flatten();
    let follow_ups =
        follow_ups.map(|next| NewMessage::new(crate::support::ROUTE, None, next["payload"].clone())).collect();
    let completion = Completion { result: Some(json!({"holder": holder})), follow_ups, ..Completion::default() };
    assert!(bus.complete(&fence, holder, &completion).await.unwrap());
}

async fn rust_worker(bus: Bus, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let claimed = claim_for(&bus, "rust/0#1", 2, LEASE).await;
        for message in &claimed {
            obey(&bus, message, "rust/0#1").await;
        }
        if claimed.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What was sent, by what each message should come to.
struct Sent {
    hanging: Vec<(Language, Uuid)>,
    targeted: Vec<(Language, Uuid)>,
    plain: Vec<Uuid>,
    retried: Vec<Uuid>,
    rejected: Vec<Uuid>,
    parents: Vec<Uuid>,
}

impl Sent {
    async fn all(bus: &Bus, hanging: Vec<(Language, Uuid)>) -> Self {
        let send = async |message: NewMessage| bus.enqueue(&message).await.unwrap().id;
        let mut sent = Self {
            hanging,
            targeted: Vec::new(),
            plain: Vec::new(),
            retried: Vec::new(),
            rejected: Vec::new(),
            parents: Vec::new(),
        };
        let child = json!({"service": "test", "role": "work", "payload": {"__assignment": {}, "child": true}});
        for _ in 0..20 {
            sent.plain.push(send(order(json!({"work_ms": 10}))).await);
            sent.retried.push(send(order(at_first(json!({"failure": {}})))).await);
            // whichever attempt outlives its worker
            let always = json!({"retriable": false});
            sent.rejected.push(send(order(json!({"failure": always, "attempts": {"1": {"failure": always}}}))).await);
            sent.parents.push(send(order(json!({"follow_ups": [child]}))).await);
        }
        for language in Language::ALL {
            for _ in 0..5 {
                sent.targeted.push((language, send(order_for(language, json!({"work_ms": 5}))).await));
            }
        }
        sent
    }

    async fn check(&self, bus: &Bus) {
        let mut done: Vec<Uuid> = [&self.plain[..], &self.retried, &self.parents].concat();
        done.extend(self.hanging.iter().chain(&self.targeted).map(|(_, id)| *id));
        for id in done {
            let row = ended(bus, id).await;
            assert_eq!((row["status"].as_str(), events(bus, id, "execute_done").await), (Some("done"), 1), "{row}");
        }
        for &id in &self.retried {
            let row = ended(bus, id).await;
            assert!(row["attempts"].as_i64() >= Some(2) && events(bus, id, "execute_retry").await >= 1, "{row}");
        }
        for &id in &self.rejected {
            let row = ended(bus, id).await;
            assert_eq!((row["status"].as_str(), events(bus, id, "execute_failed").await), (Some("failed"), 1), "{row}");
            assert!(row["error"].as_str().unwrap().contains("as ordered"), "{row}");
        }
        for &parent in &self.parents {
            let task = bus.task(parent).await.unwrap().unwrap();
            assert_eq!(task.steps.len(), 2, "one follow-up each: {task:?}");
            assert_eq!(events(bus, task.steps[1].id, "execute_done").await, 1);
        }
        for &(language, id) in &self.targeted {
            assert!(ended(bus, id).await["result"]["holder"].as_str().unwrap().starts_with(language.instance()));
        }
        let expected = self.plain.len() + self.retried.len() + self.rejected.len() + 2 * self.parents.len();
        let all = expected + self.hanging.len() + self.targeted.len();
        assert_eq!(count(bus, "true").await, i64::try_from(all).unwrap());
    }
}

#[tokio::test]
async fn workers_in_three_languages_share_a_queue_and_two_killed_ones_cost_nothing() {
    let (bus, database) = bus().await;
    let mut hanging = Vec::new();
    for language in Language::ALL {
        let id = bus.enqueue(&order_for(language, hangs())).await.unwrap().id;
        hanging.push((language, id));
    }
    let mut workers = Language::ALL.map(|language| language.start(&database.url, &[]));
    let mut victims = Vec::new();
    for &(_, id) in &hanging {
        victims.push(begun(&bus, id).await);
    }
    let sent = Sent::all(&bus, hanging).await;
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let in_rust = tracker.spawn(rust_worker(bus.clone(), stop.clone()));
    timeout(PATIENCE, async {
        while count(&bus, "status = 'done'").await < 10 {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .unwrap();
    for worker in &mut workers {
        worker.kill().await.unwrap();
    }
    let mut successors = Language::ALL.map(|language| language.start(&database.url, &[]));
    timeout(PATIENCE, async {
        while count(&bus, "done_at is null").await > 0 {
            // the leases of the dead end, also of a claim that was under way, and no other does however slow the machine is
            sqlx::query("update bus.claims set lease_until = clock_timestamp() where holder = any ($1)")
                .bind(&victims)
                .execute(bus.pool())
                .await
                .unwrap();
            bus.reclaim(100).await.unwrap();
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("the queue does not drain");
    sent.check(&bus).await;
    for ((language, id), victim) in sent.hanging.iter().zip(&victims) {
        let row = ended(&bus, *id).await;
        let winner = row["result"]["holder"].as_str().unwrap();
        assert!(winner.starts_with(language.instance()) && winner != victim, "{winner} after {victim}");
        assert_eq!(row["attempts"], 2);
    }
    stop.cancel();
    in_rust.await.unwrap();
    for successor in &mut successors {
        signal(successor, "-TERM");
        assert_eq!(exit_code(successor).await, Some(0));
    }
}

async fn worker_hands_back_at_sigterm_what_it_cannot_finish(language: Language) {
    let (bus, database) = bus().await;
    let id = bus.enqueue(&order(hangs())).await.unwrap().id;
    let mut worker = language.start(&database.url, &[]);
    begun(&bus, id).await;
    signal(&worker, "-TERM");
    assert_eq!(exit_code(&mut worker).await, Some(0));
    let handed_back = claim_one(&bus, "w").await;
    assert_eq!((handed_back.id, handed_back.attempt), (id, 2), "free at once, long before its lease");
    assert_eq!(ended_after(&bus, &handed_back).await["released"], 1);
}

async fn ended_after(bus: &Bus, claimed: &Claimed) -> Value {
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    ended(bus, claimed.id).await
}

async fn worker_finishes_within_its_grace_what_it_has_in_hand(language: Language) {
    let (bus, database) = bus().await;
    let id = bus.enqueue(&order(at_first(json!({"work_ms": 1_000})))).await.unwrap().id;
    let mut worker = language.start(&database.url, &[("GRACE_MS", "100000")]);
    begun(&bus, id).await;
    signal(&worker, "-TERM");
    let next = bus.enqueue(&order(json!({}))).await.unwrap().id;
    assert_eq!(exit_code(&mut worker).await, Some(0));
    let row = ended(&bus, id).await;
    assert_eq!((&row["status"], &row["attempts"]), (&json!("done"), &json!(1)), "{row}");
    // unless it was claimed before the signal was heard
    let next = bus.message(next).await.unwrap().unwrap();
    assert!(matches!(next["status"].as_str(), Some("queued" | "done")), "{next}");
}

async fn worker_that_slept_past_its_lease_changes_nothing(language: Language) {
    let (bus, database) = bus().await;
    // so long that it is stopped amid it, however slow the machine is
    let id = bus.enqueue(&order(json!({"work_ms": 5_000}))).await.unwrap().id;
    let worker = language.start(&database.url, &[SHORT_LEASE]);
    begun(&bus, id).await;
    signal(&worker, "-STOP");
    timeout(PATIENCE, async {
        while bus.reclaim(10).await.unwrap() == 0 {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .unwrap();
    let taken_over = claim_one(&bus, "w").await;
    assert_eq!((taken_over.id, taken_over.attempt), (id, 2));
    signal(&worker, "-CONT");
    // it finds out, and goes on with other work
    let next = bus.enqueue(&order(json!({"work_ms": 700}))).await.unwrap().id;
    assert_eq!(ended(&bus, next).await["status"], "done");
    let completion = Completion { result: Some(json!({"holder": "w"})), ..Completion::default() };
    assert!(bus.complete(&taken_over.fence(), "w", &completion).await.unwrap(), "it is still ours");
    let row = ended(&bus, id).await;
    assert_eq!((&row["result"]["holder"], events(&bus, id, "execute_done").await), (&json!("w"), 1));
    assert_eq!(events(&bus, id, "execute_failed").await + events(&bus, id, "execute_retry").await, 1, "the lapse");
}

async fn worker_drops_what_is_cancelled(language: Language) {
    let (bus, database) = bus().await;
    let hanging = bus.enqueue(&order(hangs())).await.unwrap().id;
    let _worker = language.start(&database.url, &[("CONCURRENCY", "1")]);
    begun(&bus, hanging).await;
    let next = bus.enqueue(&order(json!({}))).await.unwrap().id;
    assert_eq!(bus.cancel(hanging).await.unwrap(), 1);
    // its only slot is free again
    assert_eq!(ended(&bus, next).await["status"], "done");
    assert_eq!(ended(&bus, hanging).await["status"], "cancelled");
    assert!(claim(&bus, "w", 1).await.is_empty());
}
