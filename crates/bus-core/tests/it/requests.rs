//! Requests: the answer, the ways of not getting one, and deadlines that no hop can stretch.

use std::time::Duration;

use cogo_bus_core::{Bus, Claimed, Completion, Error, Failure, RequestError, Wake, WakeUps};
use cogo_contracts::{NewMessage, Tenant};
use cogo_db::PoolSettings;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    foreign_workers::line::{Fault, Line},
    support::{PATIENCE, ROUTE, bus, claim, claim_one, message, misplaced, until_somebody_waits_for_a_lock},
};

/// Takes the next message as soon as there is one.
async fn claim_next(bus: &Bus) -> Claimed {
    let taking = async {
        loop {
            if let Some(claimed) = claim(bus, "w", 1).await.pop() {
                return claimed;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, taking).await.expect("a request comes")
}

async fn answer(bus: &Bus, result: Value) -> bool {
    let claimed = claim_next(bus).await;
    let completion = Completion { result: Some(result), ..Completion::default() };
    bus.complete(&claimed.fence(), "w", &completion).await.unwrap()
}

/// A bus over a line on which the first answer that holds the word is swallowed, with all that comes after it.
async fn silenced(url: &str, word: &'static str) -> (Bus, Line) {
    let line = Line::to(url, word, Fault::Silence).await;
    let settings = PoolSettings { acquire_timeout: PATIENCE, ..PoolSettings::new(&line.url, "silenced") };
    (Bus::new(cogo_db::connect(&settings).unwrap()), line)
}

async fn status(bus: &Bus, id: uuid::Uuid) -> Value {
    let reply: Value = sqlx::query_scalar("select bus.reply($1)").bind(id).fetch_one(bus.pool()).await.unwrap();
    reply["status"].clone()
}

#[tokio::test]
async fn request_is_answered_with_the_result_of_its_task() {
    let (bus, _database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.clone().run(bus.pool().clone(), stop.clone()));
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::CatchUp);
    let asked = message(json!({"question": 1}));
    let (reply, answered) = tokio::join!(bus.request(&asked, PATIENCE, &wakeups), answer(&bus, json!({"answer": 2})));
    assert!(answered);
    let reply = reply.unwrap();
    assert_eq!((reply.result, reply.result_url), (Some(json!({"answer": 2})), None));
    let told = async { while hints.recv().await.unwrap() != Wake::Task(reply.id) {} };
    timeout(PATIENCE, told).await.expect("the end was announced to the one who waits");
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn answer_comes_without_any_hint_and_after_several_steps() {
    let (bus, _database) = bus().await;
    let working = async {
        let first = claim_next(&bus).await;
        let follow_ups = vec![NewMessage::new(ROUTE, None, json!({}))];
        let completion = Completion { result: Some(json!("half")), follow_ups, ..Completion::default() };
        assert!(bus.complete(&first.fence(), "w", &completion).await.unwrap());
        assert!(answer(&bus, json!("whole")).await);
    };
    let asked = message(json!({}));
    let deaf = WakeUps::default();
    let (reply, ()) = tokio::join!(bus.request(&asked, PATIENCE, &deaf), working);
    assert_eq!(reply.unwrap().result, Some(json!("whole")));
}

#[tokio::test]
async fn failure_and_cancellation_are_told() {
    let (bus, _database) = bus().await;
    let deaf = WakeUps::default();
    let asked = message(json!({}));
    let failing = async {
        let claimed = claim_next(&bus).await;
        let failure = Failure { reason: "no such model".to_owned(), retriable: false, retry_after: None };
        bus.fail(&claimed.fence(), "w", &failure).await.unwrap().unwrap();
    };
    let (reply, ()) = tokio::join!(bus.request(&asked, PATIENCE, &deaf), failing);
    assert!(matches!(reply, Err(RequestError::Failed { error, .. }) if error == "no such model"));
    let cancelling = async {
        let claimed = claim_next(&bus).await;
        assert_eq!(bus.cancel(claimed.root_id).await.unwrap(), 1);
    };
    let (reply, ()) = tokio::join!(bus.request(&asked, PATIENCE, &deaf), cancelling);
    assert!(matches!(reply, Err(RequestError::Cancelled { .. })));
}

#[tokio::test]
async fn request_that_timed_out_unstarted_never_starts() {
    let (bus, _database) = bus().await;
    let asked = message(json!({}));
    let reply = bus.request(&asked, Duration::from_millis(50), &WakeUps::default()).await;
    let Err(RequestError::TimedOut { id }) = reply else { panic!("{reply:?}") };
    assert!(claim(&bus, "w", 10).await.is_empty());
    bus.expire(10).await.unwrap();
    let task = bus.task(id).await.unwrap().unwrap();
    assert!(task.error.unwrap().contains("time to live passed before it was started"));
    assert_eq!(status(&bus, id).await, "timed_out");
}

#[tokio::test]
async fn reply_after_the_deadline_is_recorded_and_not_delivered() {
    let (bus, _database) = bus().await;
    let asked = message(json!({}));
    let deaf = WakeUps::default();
    let (reply, claimed) = tokio::join!(bus.request(&asked, Duration::from_secs(8), &deaf), claim_next(&bus));
    let Err(RequestError::TimedOut { id }) = reply else { panic!("{reply:?}") };
    assert_eq!(id, claimed.id);
    let completion = Completion { result: Some(json!("too late")), ..Completion::default() };
    assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
    assert_eq!(bus.task(id).await.unwrap().unwrap().result, Some(json!("too late")));
    assert_eq!(status(&bus, id).await, "timed_out");
}

#[tokio::test]
async fn shorter_time_to_live_of_the_message_is_kept() {
    let (bus, _database) = bus().await;
    let mut asked = message(json!({}));
    asked.ttl_ms = Some(50);
    let reply = timeout(PATIENCE, bus.request(&asked, 10 * PATIENCE, &WakeUps::default())).await.unwrap();
    assert!(matches!(reply, Err(RequestError::TimedOut { .. })));
}

#[tokio::test]
async fn same_key_asks_once_and_both_get_the_answer() {
    let (bus, _database) = bus().await;
    let mut asked = message(json!({}));
    asked.idempotency_key = Some("once".to_owned());
    let deaf = WakeUps::default();
    let (one, other, answered) = tokio::join!(
        bus.request(&asked, PATIENCE, &deaf),
        bus.request(&asked, PATIENCE, &deaf),
        answer(&bus, json!(1))
    );
    assert!(answered);
    assert_eq!(one.unwrap(), other.unwrap());
    assert!(claim(&bus, "w", 1).await.is_empty());
    let again = bus.request(&asked, Duration::from_millis(1), &deaf).await.unwrap();
    assert_eq!(again.result, Some(json!(1)), "known already");
}

#[tokio::test]
async fn answer_under_a_key_that_outlived_its_message_is_said_to_be_gone() {
    let (bus, _database) = bus().await;
    let asked = NewMessage { idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    let first = bus.enqueue(&asked).await.unwrap().id;
    claim(&bus, "w", 1).await;
    sqlx::query("delete from public.agent_messages where id = $1").bind(first).execute(bus.pool()).await.unwrap();
    let gone = bus.request(&asked, PATIENCE, &WakeUps::default()).await;
    assert!(matches!(gone, Err(RequestError::Bus(Error::NotFound { .. }))), "{gone:?}");
}

#[tokio::test]
async fn child_never_outlives_its_parent_through_two_hops() {
    let (bus, _database) = bus().await;
    let mut root = message(json!({}));
    root.ttl_ms = Some(60_000);
    bus.enqueue(&root).await.unwrap();
    let hop = |ttl_ms| NewMessage { ttl_ms: Some(ttl_ms), ..NewMessage::new(ROUTE, None, json!({})) };
    let mut before = 60_000;
    for ttl_ms in [3_600_000, 3_600_000, 30_000] {
        let claimed = claim_one(&bus, "w").await;
        let remaining = claimed.remaining_ms.unwrap();
        assert!(remaining <= before, "{remaining} of {before}");
        before = remaining;
        // some time passes at each hop, by the clock that counts
        sqlx::query("select pg_sleep(0.02)").execute(bus.pool()).await.unwrap();
        let completion = Completion { follow_ups: vec![hop(ttl_ms)], ..Completion::default() };
        assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
        if ttl_ms > 60_000 {
            before -= 20;
        }
    }
    assert!(claim_one(&bus, "w").await.remaining_ms.unwrap() <= 30_000, "a child may have less");
}

#[tokio::test]
async fn request_for_a_message_ends_with_its_time() {
    let (bus, _database) = bus().await;
    let deaf = WakeUps::default();
    let mut outer = message(json!({}));
    // time enough to ask on a busy machine
    outer.ttl_ms = Some(8_000);
    bus.enqueue(&outer).await.unwrap();
    let caller = claim_one(&bus, "w").await;
    let inner = NewMessage::new(ROUTE, None, json!({"inner": true}));
    let (reply, asked) = tokio::join!(bus.request_for(caller.id, &inner, PATIENCE, &deaf), claim_next(&bus));
    assert_eq!((asked.tenant.as_str(), asked.parent_id), ("acme", None), "a task of its own, of the same tenant");
    assert!(asked.remaining_ms.unwrap() <= caller.remaining_ms.unwrap());
    assert!(matches!(reply, Err(RequestError::TimedOut { .. })));
    let too_late = bus.request_for(caller.id, &inner, PATIENCE, &deaf).await;
    assert!(matches!(too_late, Err(RequestError::Bus(Error::Conflict { .. }))), "{too_late:?}");
    let foreign = NewMessage::new(ROUTE, Some(Tenant::new("other").unwrap()), json!({}));
    let crossing = bus.request_for(caller.id, &foreign, PATIENCE, &deaf).await;
    assert!(matches!(crossing, Err(RequestError::Bus(Error::Refused { .. }))), "{crossing:?}");
    let nobody = bus.request_for(uuid::Uuid::now_v7(), &inner, PATIENCE, &deaf).await;
    assert!(matches!(nobody, Err(RequestError::Bus(Error::NotFound { .. }))), "{nobody:?}");
}

#[tokio::test]
async fn request_that_waits_for_its_key_does_not_outlive_its_caller() {
    let (bus, _database) = bus().await;
    bus.enqueue(&NewMessage { ttl_ms: Some(600_000), ..message(json!({})) }).await.unwrap();
    let caller = claim_one(&bus, "w").await;
    let mut somebody = bus.pool().begin().await.unwrap();
    let same = "select bus.enqueue('test', 'work', 'acme', '{}', idempotency_key => 'once')";
    sqlx::query(same).execute(&mut *somebody).await.unwrap();
    let asking = TaskTracker::new().spawn({
        let (bus, caller) = (bus.clone(), caller.id);
        let ask = r#"select id from bus.request('{"service": "test", "role": "work", "idempotency_key": "once"}', 3600000, 'me', $1)"#;
        async move { sqlx::query_scalar::<_, uuid::Uuid>(ask).bind(caller).fetch_one(bus.pool()).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.request").await;
    // some time passes, by the clock that counts
    sqlx::query("select pg_sleep(0.02)").execute(bus.pool()).await.unwrap();
    somebody.rollback().await.unwrap();
    let asked = asking.await.unwrap();
    let ends_with_its_caller: bool = sqlx::query_scalar(
        "select asked.expires_at <= caller.expires_at and asked.expires_at > caller.expires_at - interval '1 s'
                and exists (select from bus.expiring e where e.id = asked.id and e.at = asked.expires_at)
           from public.agent_messages asked, public.agent_messages caller where asked.id = $1 and caller.id = $2",
    )
    .bind(asked)
    .bind(caller.id)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert!(ends_with_its_caller);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn any_language_asks_by_sql_alone() {
    let (bus, _database) = bus().await;
    let id: uuid::Uuid = sqlx::query_scalar(
        r#"select id from bus.request('{"service": "test", "role": "work", "tenant": "t", "payload": {}}', 60000, 'psql')"#,
    )
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert_eq!(status(&bus, id).await, "pending");
    assert!(answer(&bus, json!(7)).await);
    let reply: Value = sqlx::query_scalar("select bus.reply($1)").bind(id).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(reply, json!({"status": "done", "result": 7, "result_url": null, "error": null}));
    let unknown: Option<Value> =
        sqlx::query_scalar("select bus.reply(gen_random_uuid())").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(unknown, None);
    for arguments in ["'[]', 1000, 'x'", "'{\"parent_id\": null}', 1000, 'x'", "'{}', 0, 'x'", "'{}', null, 'x'"] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(format!("select bus.request({arguments})")))
            .execute(bus.pool())
            .await
            .unwrap_err();
        assert!(matches!(refused.into(), Error::Refused { .. }), "{arguments}");
    }
}

#[tokio::test]
async fn asker_hears_of_the_end_and_not_of_the_claim() {
    let (bus, _database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.clone().run(bus.pool().clone(), stop.clone()));
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::CatchUp);
    let asked = message(json!({}));
    let (reply, answered) = tokio::join!(bus.request(&asked, PATIENCE, &wakeups), answer(&bus, json!({})));
    assert!(answered);
    let id = reply.unwrap().id;
    // who watches a task as well hears of every step of it
    let watched = bus.enqueue(&message(json!({}))).await.unwrap().id;
    bus.watch(watched, "observer", PATIENCE).await.unwrap();
    claim_next(&bus).await;
    let mut told = Vec::new();
    while told.last() != Some(&watched) {
        if let Wake::Task(task) = timeout(PATIENCE, hints.recv()).await.expect("a hint").unwrap() {
            told.push(task);
        }
    }
    assert_eq!(told, [id, watched]);
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn silence_does_not_make_a_request_outlive_its_deadline() {
    let (_bus, database) = bus().await;
    let (asked, deaf) = (message(json!({})), WakeUps::default());
    // a column of its answer: nobody can know whether it was sent
    let (unsent, _line) = silenced(&database.url, "duplicate").await;
    let reply = timeout(PATIENCE, unsent.request(&asked, Duration::from_secs(1), &deaf)).await.expect("an end");
    let Err(RequestError::Bus(error)) = reply else { panic!("{reply:?}") };
    assert!(error.is_transient(), "{error:?}");

    // time enough to ask on a busy machine
    let (unanswered, _line) = silenced(&database.url, "pending").await;
    let reply = timeout(PATIENCE, unanswered.request(&asked, Duration::from_secs(8), &deaf)).await.expect("an end");
    assert!(matches!(reply, Err(RequestError::TimedOut { .. })), "{reply:?}");
}

#[tokio::test]
async fn silence_costs_a_request_one_look_and_not_its_answer() {
    let (bus, database) = bus().await;
    let (silenced, line) = silenced(&database.url, "pending").await;
    let working = async {
        let claimed = claim_next(&bus).await;
        while line.sprung() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let completion = Completion { result: Some(json!("heard")), ..Completion::default() };
        bus.complete(&claimed.fence(), "w", &completion).await.unwrap()
    };
    let (asked, deaf) = (message(json!({})), WakeUps::default());
    let (reply, done) = tokio::join!(timeout(PATIENCE, silenced.request(&asked, PATIENCE, &deaf)), working);
    assert!(done);
    assert_eq!(reply.expect("an end").unwrap().result, Some(json!("heard")));
}
