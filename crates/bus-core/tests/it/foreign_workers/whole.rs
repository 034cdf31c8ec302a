//! The calls in which a foreign worker says all that it has to say.

use cogo_bus_core::{Bus, Claimed, Completion};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::count;
use crate::support::{bus, claim_one, message};

const DRAIN: &str = "select to_jsonb(registry.drain(($1 ->> 'run')::uuid, 'a test'))";

async fn say(bus: &Bus, query: &'static str, values: &[&Value]) -> Result<Value, sqlx::Error> {
    let mut said = sqlx::query_scalar(AssertSqlSafe(query));
    for value in values {
        said = said.bind((*value).clone());
    }
    said.fetch_one(bus.pool()).await
}

async fn work(bus: &Bus, worker: &Value, held: &Value) -> Value {
    say(bus, "select bus.work($1, $2)", &[worker, held]).await.unwrap()
}

async fn attend(bus: &Bus, worker: &Value) -> Result<Value, sqlx::Error> {
    say(bus, "select to_jsonb(a) from registry.attend($1, 0) as a", &[worker]).await
}

fn code(refused: &sqlx::Error) -> String {
    refused.as_database_error().and_then(|error| error.code()).unwrap().into_owned()
}

/// What is said next time: all that was said before, and what the answer adds.
fn next(worker: &Value, answer: &Value) -> Value {
    let mut next = worker.clone();
    next.as_object_mut().unwrap().extend(answer["worker"].as_object().unwrap().clone());
    next
}

fn settings() -> Value {
    json!({"agent_service": "test", "agent_role": "work", "holder_id": "w/0"})
}

async fn claimed(bus: &Bus, holder: &str) -> Claimed {
    bus.enqueue(&message(json!({}))).await.unwrap();
    claim_one(bus, holder).await
}

#[tokio::test]
async fn many_endings_are_settled_in_one_call_and_what_is_refused_fails_alone() {
    let (bus, _database) = bus().await;
    let child = json!({"service": "test", "role": "answer", "payload": {"child": true}});
    let too_deep = format!("{{\"result\": {}", "[".repeat(100_000));
    let endings = [
        (json!({"result": 1, "follow_ups": [child]}), "done"),
        (json!({"error": "why", "retriable": false}), "failed"),
        (json!({"error": "not now", "defer_ms": 3_600_000}), "queued"),
        (json!({"error": "again", "retry_ms": 3_600_000}), "queued"),
        (json!({"error": "refused", "code": "23514"}), "failed"),
        (json!({"result": 2, "follow_ups": [{"service": "test", "role": "answer", "colour": "red"}]}), "failed"),
        (json!("{\"result\": \"\\u0000\"}"), "failed"),
        (json!(too_deep), "queued"),
        (json!("{\"result\": 3}"), "done"),
    ];
    let (mut said, mut expected) = (json!({}), json!({}));
    for (ending, status) in &endings {
        let one = claimed(&bus, "w#1").await;
        said[one.id.to_string()] = json!({"attempt": one.attempt, "ending": ending});
        expected[one.id.to_string()] = json!(status);
    }
    let lost = claimed(&bus, "w#2").await;
    said[lost.id.to_string()] = json!({"attempt": lost.attempt, "ending": {"result": 4}});
    let settle = "select bus.settle_many('w#1', $1)";
    assert_eq!(say(&bus, settle, &[&said]).await.unwrap(), expected);
    assert_eq!(count(&bus, "payload ? 'child' and parent_id is not null").await, 1);
    assert_eq!(count(&bus, "error like '%colour%' and attempts = 1").await, 1);
    assert_eq!(count(&bus, "status = 'done'").await, 2);
    assert_eq!(say(&bus, settle, &[&said]).await.unwrap(), json!({}), "each ends once");
    let raised = "select to_jsonb(bus.settle_or_raise(($1 ->> 'id')::uuid, 'w#1', 1::smallint, '{}'))";
    let refused = say(&bus, raised, &[&json!({"id": lost.id})]).await.unwrap_err();
    assert_eq!(code(&refused), "55000", "{refused}");
}

#[tokio::test]
async fn question_is_sent_once_in_an_attempt_however_often_it_is_asked() {
    let (bus, _database) = bus().await;
    let asking = claimed(&bus, "w#1").await;
    let ask = "select bus.ask(($1 ->> 'id')::uuid, $1 ->> 'holder', 1::smallint, $2, 60000)";
    let caller = json!({"id": asking.id, "holder": "w#1"});
    let question = json!({"service": "test", "role": "work", "payload": {"question": "how many?"}});
    for _ in 0..3 {
        assert_eq!(say(&bus, ask, &[&caller, &question]).await.unwrap()["status"], "pending");
    }
    assert_eq!(count(&bus, "payload ? 'question'").await, 1);
    let asked = claim_one(&bus, "w#2").await;
    let completion = Completion { result: Some(json!(42)), ..Completion::default() };
    assert!(bus.complete(&asked.fence(), "w#2", &completion).await.unwrap());
    let reply = say(&bus, ask, &[&caller, &question]).await.unwrap();
    assert_eq!((&reply["status"], &reply["result"]), (&json!("done"), &json!(42)));
    sqlx::query("delete from public.agent_messages where id = $1").bind(asked.id).execute(bus.pool()).await.unwrap();
    assert_eq!(code(&say(&bus, ask, &[&caller, &question]).await.unwrap_err()), "P0002", "the answer is gone");
    sqlx::query("update bus.keys set until = clock_timestamp()").execute(bus.pool()).await.unwrap();
    assert_eq!(say(&bus, ask, &[&caller, &question]).await.unwrap()["status"], "pending", "asked anew");
    let stranger = json!({"id": asking.id, "holder": "w#2"});
    assert_eq!(code(&say(&bus, ask, &[&stranger, &question]).await.unwrap_err()), "55000");
}

#[tokio::test]
async fn one_call_claims_ends_and_tells_what_is_over_and_may_be_said_again() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let first = work(&bus, &settings(), &json!({})).await;
    assert_eq!(first["messages"], json!([]), "nothing before it has a name of its own");
    let worker = next(&settings(), &first);
    let second = work(&bus, &worker, &json!({})).await;
    assert_eq!((&second["messages"][0]["id"], &second["messages"][0]["attempt"]), (&json!(id), &json!(1)));
    // the answer was lost: it is had again, without an attempt being used up
    let again = work(&bus, &worker, &json!({})).await;
    assert_eq!((&again["messages"][0]["id"], &again["messages"][0]["attempt"]), (&json!(id), &json!(2)));
    let worker = next(&worker, &again);
    let cancelled = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = json!({id.to_string(): {"attempt": 2}});
    assert_eq!(work(&bus, &worker, &held).await["messages"][0]["id"], json!(cancelled));
    assert_eq!(bus.cancel(cancelled).await.unwrap(), 1);
    let held = json!({
        id.to_string(): {"attempt": 2, "ending": "{\"result\": 1}"},
        cancelled.to_string(): {"attempt": 1},
    });
    for _ in 0..2 {
        let over = work(&bus, &worker, &held).await["over"].clone();
        let over: Vec<Uuid> = serde_json::from_value(over).unwrap();
        assert!(over.len() == 2 && over.contains(&id) && over.contains(&cancelled), "{over:?}");
    }
    assert_eq!(count(&bus, "status = 'done' and result = '1'").await, 1);
    let stopping = next(&worker, &json!({"worker": {"stopping": true}}));
    assert_eq!(work(&bus, &stopping, &json!({})).await["worker"]["next_ms"], Value::Null);
    let strange = next(&worker, &json!({"worker": {"colour": "red"}}));
    let refused = say(&bus, "select bus.work($1, $2)", &[&strange, &json!({})]).await.unwrap_err();
    assert_eq!(code(&refused), "22023", "{refused}");
}

/// The wait that the next call answers, which comes when it was to, or before.
async fn next_wait(bus: &Bus, worker: &mut Value, is_woken: bool) -> Value {
    worker["look_at"] = json!(if is_woken { "2200-01-01T00:00:00Z" } else { "2000-01-01T00:00:00Z" });
    *worker = next(worker, &work(bus, worker, &json!({})).await);
    worker["next_ms"].clone()
}

#[tokio::test]
async fn worker_without_work_looks_again_soon_and_then_ever_later() {
    let (bus, _database) = bus().await;
    let mut worker = next(&settings(), &work(&bus, &settings(), &json!({})).await);
    for _ in 0..2 {
        for wait_ms in [10, 40, 160, 640, 2_560, 10_240, 15_000, 15_000] {
            assert_eq!(next_wait(&bus, &mut worker, false).await, wait_ms);
        }
        // a hint woke it, and others of the same moment may have been left out
        for wait_ms in [10, 10] {
            assert_eq!(next_wait(&bus, &mut worker, true).await, wait_ms);
        }
        assert_eq!(next_wait(&bus, &mut worker, false).await, 40);
        bus.enqueue(&message(json!({}))).await.unwrap();
        let answer = work(&bus, &worker, &json!({})).await;
        worker = next(&worker, &answer);
        let id = answer["messages"][0]["id"].as_str().unwrap();
        // with no free hand it renews its lease, and does not look
        let one_hand = next(&worker, &json!({"worker": {"concurrency": 1}}));
        let held = json!({id: {"attempt": 1}});
        assert_eq!(work(&bus, &one_hand, &held).await["worker"]["next_ms"], 10_000);
        let held = json!({id: {"attempt": 1, "ending": {}}});
        let ended = work(&bus, &worker, &held).await;
        assert_eq!(ended["worker"]["next_ms"], 10);
        worker = next(&worker, &json!({"worker": {"looks": 0}}));
    }
}

/// The call in which something passing stands in the way of a completion.
async fn settled_while_somebody_sends_the_same(bus: &Bus, said: &Value, key: &str) -> sqlx::Error {
    let mut other = bus.pool().begin().await.unwrap();
    let same = "select bus.enqueue('test', 'answer', m.tenant, '{}', idempotency_key => $1)
                  from public.agent_messages m limit 1";
    sqlx::query(same).bind(key).execute(&mut *other).await.unwrap();
    let mut own = bus.pool().begin().await.unwrap();
    sqlx::query("set local lock_timeout = '200ms'").execute(&mut *own).await.unwrap();
    let settle = "select bus.settle_many('w#1', $1)";
    sqlx::query_scalar::<_, Value>(settle).bind(said).fetch_one(&mut *own).await.unwrap_err()
}

#[tokio::test]
async fn what_passes_fails_no_attempt_and_what_names_no_attempt_fails_alone() {
    let (bus, _database) = bus().await;
    let child = json!({"service": "test", "role": "answer", "idempotency_key": "once", "payload": {}});
    let (one, other) = (claimed(&bus, "w#1").await, claimed(&bus, "w#1").await);
    let mut said = json!({one.id.to_string(): {"attempt": 1, "ending": {"result": 1, "follow_ups": [child]}}});
    let passing = settled_while_somebody_sends_the_same(&bus, &said, "once").await;
    assert_eq!(code(&passing), "55P03", "{passing}");
    assert_eq!(count(&bus, "status = 'done' or error is not null").await, 0);
    said[other.id.to_string()] = json!({"attempt": "first", "ending": {"result": 2}});
    said["nobody"] = json!({"attempt": 1, "ending": {"result": 3}});
    let settled = say(&bus, "select bus.settle_many('w#1', $1)", &[&said]).await.unwrap();
    assert_eq!(settled, json!({one.id.to_string(): "done"}));
}

fn member() -> Value {
    next(&settings(), &json!({"worker": {"agent_domain": "test", "bus_poll_ms": 50, "beat_ms": 600_000}}))
}

/// A member that has its name and is active.
async fn joined(bus: &Bus) -> Value {
    let mut worker = member();
    for _ in 0..2 {
        worker = next(&worker, &work(bus, &worker, &json!({})).await);
    }
    worker
}

async fn order(bus: &Bus, wish: &'static str, worker: &Value) {
    say(bus, wish, &[worker]).await.unwrap();
}

async fn runs(bus: &Bus) -> Vec<(String, Option<String>)> {
    let runs = "select state, end_reason from registry.agents order by epoch";
    sqlx::query_as(runs).fetch_all(bus.pool()).await.unwrap()
}

#[tokio::test]
async fn drained_member_leaves_once_it_knows_and_stays_away_whichever_answer_is_lost() {
    let (bus, _database) = bus().await;
    let idle = joined(&bus).await;
    order(&bus, DRAIN, &idle).await;
    let unwilling = next(&idle, &json!({"worker": {"stopping": false}}));
    let mut told = Value::Null;
    for said in [&idle, &idle, &unwilling] {
        let answer = work(&bus, said, &json!({})).await;
        let step = (&answer["worker"]["stopping"], &answer["worker"]["next_ms"]);
        assert_eq!(step, (&json!(true), &json!(0)), "{answer}");
        assert_eq!(runs(&bus).await, [("draining".to_owned(), None)], "it has not said that it knows");
        told = next(said, &answer);
    }
    for said in [&told, &told, &idle] {
        let answer = work(&bus, said, &json!({})).await;
        assert_eq!((&answer["worker"]["next_ms"], &answer["messages"]), (&Value::Null, &json!([])), "{answer}");
        assert_eq!(runs(&bus).await, [("terminated".to_owned(), Some("stopped".to_owned()))]);
    }
}

#[tokio::test]
async fn call_that_changes_the_membership_does_nothing_else_and_loses_no_ending() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let unnamed = next(&member(), &work(&bus, &member(), &json!({})).await);
    let registered = work(&bus, &unnamed, &json!({})).await;
    assert_eq!((&registered["messages"], &registered["worker"]["next_ms"]), (&json!([]), &json!(0)), "{registered}");
    let worker = next(&unnamed, &registered);
    assert_eq!(work(&bus, &worker, &json!({})).await["messages"][0]["id"], json!(id));
    let hand = json!({id.to_string(): {"attempt": 1, "ending": {"result": 1}}});
    let suspect = "select to_jsonb(t) from registry.transition(($1 ->> 'run')::uuid, array['active'], 'suspect') as t";
    order(&bus, suspect, &worker).await;
    let nothing = |answer: &Value| {
        assert_eq!((&answer["over"], &answer["worker"]["next_ms"]), (&json!([]), &json!(0)), "{answer}");
    };
    nothing(&work(&bus, &worker, &hand).await);
    assert_eq!(count(&bus, "status = 'claimed'").await, 1, "the clock is held, and no message");
    let stopping = next(&worker, &json!({"worker": {"stopping": true}}));
    let draining = work(&bus, &stopping, &hand).await;
    nothing(&draining);
    let stopping = next(&stopping, &draining);
    let ended = work(&bus, &stopping, &hand).await;
    assert_eq!((&ended["over"], &ended["worker"]["next_ms"]), (&json!([id]), &json!(0)), "{ended}");
    assert_eq!(count(&bus, "status = 'done'").await, 1);
    assert_eq!(runs(&bus).await, [("draining".to_owned(), None)], "who leaves has nothing else to say");
    assert_eq!(work(&bus, &stopping, &json!({})).await["worker"]["next_ms"], Value::Null);
}

#[tokio::test]
async fn member_that_leaves_hands_back_what_it_never_heard_of() {
    let (bus, _database) = bus().await;
    let worker = joined(&bus).await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(work(&bus, &worker, &json!({})).await["messages"][0]["id"], json!(id), "an answer that is lost");
    let stopping = next(&worker, &json!({"worker": {"stopping": true}}));
    let mut steps = 0;
    while work(&bus, &stopping, &json!({})).await["worker"]["next_ms"] == 0 {
        steps += 1;
    }
    assert_eq!(steps, 2, "it drains, it hands back, it leaves");
    let row = bus.message(id).await.unwrap().unwrap();
    assert_eq!((&row["status"], &row["released"]), (&json!("queued"), &json!(1)), "{row}");
    assert_eq!(runs(&bus).await, [("terminated".to_owned(), Some("stopped".to_owned()))]);
}

#[tokio::test]
async fn run_joins_once_however_often_it_says_so_and_its_successor_too() {
    let (bus, _database) = bus().await;
    let unnamed = json!({"run": Uuid::new_v4(), "holder_id": "example/0", "agent_domain": "test"});
    let mut joined = attend(&bus, &unnamed).await.unwrap();
    assert_eq!((&joined["state"], &joined["changed"]), (&json!("active"), &json!(true)));
    joined["changed"] = json!(false);
    assert_eq!(attend(&bus, &unnamed).await.unwrap(), joined);
    let former = next(&unnamed, &json!({"worker": {"run": joined["run"], "holder": joined["holder"]}}));
    let leave = "select to_jsonb(registry.deregister(($1 ->> 'run')::uuid, null, 'a test'))";
    say(&bus, leave, &[&joined]).await.unwrap();
    let stopping = next(&former, &json!({"worker": {"stopping": true}}));
    assert_eq!(attend(&bus, &stopping).await.unwrap()["state"], "terminated", "it does not come back");
    let mut successor = attend(&bus, &former).await.unwrap();
    successor["changed"] = json!(false);
    assert!(successor["run"] != joined["run"] && successor["state"] == "active", "{successor}");
    assert_eq!(attend(&bus, &former).await.unwrap(), successor, "its answer was lost");
    let other = json!({"run": Uuid::new_v4(), "holder_id": "example/0", "agent_domain": "test"});
    attend(&bus, &other).await.unwrap();
    let taken = next(&former, &json!({"worker": {"run": successor["run"], "holder": successor["holder"]}}));
    assert_eq!(code(&attend(&bus, &taken).await.unwrap_err()), "55006", "two processes of one slot do not fight");
}
