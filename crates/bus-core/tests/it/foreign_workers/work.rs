//! What a handler may answer and ask for, and where its messages come from.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Completion, PartialPlace};
use cogo_contracts::Route;
use serde_json::{Value, json};
use uuid::Uuid;

use super::language::{
    Language, NO_POLL, PATIENCE, PAUSE, at_first, ended, hangs, in_both_languages, order, order_for, send, until, works,
};
use crate::support::{bus, delays_to_pass, until_somebody_waits_for_a_lock};

const ANSWERS: Route = Route::constant("test", "answer");
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const LONG: Duration = Duration::from_secs(600);
const ONE_HAND: (&str, &str) = ("CONCURRENCY", "1");

in_both_languages!(
    work_ends_with_its_time_to_live,
    delayed_message_to_an_instance_waits_for_no_poll,
    hint_wakes_an_idle_worker,
    own_writes_stand_with_the_completion,
    own_writes_fall_with_a_completion_that_is_refused,
    own_writes_fall_with_a_claim_that_is_lost,
    large_result_stands_in_an_artifact,
    request_on_behalf_of_a_message_is_answered,
    failure_says_when_it_is_tried_again,
    deferred_message_uses_up_no_attempt,
    follow_ups_inherit_trace_and_time_left,
    worker_of_another_shard_takes_only_its_own,
    message_that_its_reader_cannot_read_costs_no_other,
    parts_that_are_sent_at_once_are_stored_in_their_order,
    as_many_write_at_once_as_there_are_hands,
    join_reads_what_all_of_its_children_came_to,
    call_answers_one_row_or_null_and_refuses_more,
    exception_with_a_nul_fails_as_any_other,
);

async fn work_ends_with_its_time_to_live(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[ONE_HAND]);
    works(&bus).await;
    // one that is not begun within its time, as on a machine that stands still, shows nothing
    let id = loop {
        let mut short = order(hangs());
        short.ttl_ms = Some(4_000);
        let id = send(&bus, short).await;
        if until(&bus, id, |row| row["attempts"] == 1 || !row["done_at"].is_null()).await["attempts"] == 1 {
            break id;
        }
    };
    // its only hand is free again
    works(&bus).await;
    let row = ended(&bus, id).await;
    assert_eq!((&row["status"], &row["attempts"]), (&json!("failed"), &json!(1)), "{row}");
    let expired: bool = sqlx::query_scalar("select done_at >= expires_at from public.agent_messages where id = $1")
        .bind(id)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert!(expired, "not before its time: {row}");
    let reason = row["error"].as_str().unwrap();
    assert!(reason.contains("Timeout") || reason.contains("time to live"), "{reason}");
}

async fn delayed_message_to_an_instance_waits_for_no_poll(language: Language) {
    let (bus, database) = bus().await;
    let mut later = order_for(language, json!({}));
    later.delay_ms = Some(2_000);
    let id = send(&bus, later).await;
    let _worker = language.start(&database.url, &[NO_POLL]);
    assert_eq!(ended(&bus, id).await["status"], "done");
}

async fn hint_wakes_an_idle_worker(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[NO_POLL]);
    for _ in 0..3 {
        works(&bus).await;
    }
}

async fn table_of_deposits(bus: &Bus) {
    sqlx::query("create table deposits (message uuid, amount integer)").execute(bus.pool()).await.unwrap();
}

async fn deposits(bus: &Bus) -> Vec<(Uuid, i32)> {
    sqlx::query_as("select message, amount from deposits").fetch_all(bus.pool()).await.unwrap()
}

async fn own_writes_stand_with_the_completion(language: Language) {
    let (bus, database) = bus().await;
    table_of_deposits(&bus).await;
    let _worker = language.start(&database.url, &[]);
    let id = send(&bus, order(json!({"deposit": 5}))).await;
    assert_eq!(ended(&bus, id).await["status"], "done");
    assert_eq!(deposits(&bus).await, [(id, 5)]);
}

async fn own_writes_fall_with_a_completion_that_is_refused(language: Language) {
    let (bus, database) = bus().await;
    table_of_deposits(&bus).await;
    let _worker = language.start(&database.url, &[]);
    let against_the_contract = json!({"service": "test", "role": "work", "colour": "red"});
    let id = send(&bus, order(json!({"deposit": 5, "follow_ups": [against_the_contract]}))).await;
    let row = ended(&bus, id).await;
    // no other attempt could do better
    assert_eq!((&row["status"], &row["attempts"]), (&json!("failed"), &json!(1)), "{row}");
    assert!(row["error"].as_str().unwrap().contains("colour"), "{row}");
    assert!(deposits(&bus).await.is_empty());
}

async fn own_writes_fall_with_a_claim_that_is_lost(language: Language) {
    let (bus, database) = bus().await;
    table_of_deposits(&bus).await;
    let _worker = language.start(&database.url, &[]);
    let mut guard = bus.pool().begin().await.unwrap();
    sqlx::query("lock table deposits in exclusive mode").execute(&mut *guard).await.unwrap();
    let id = send(&bus, order(json!({"deposit": 5}))).await;
    until_somebody_waits_for_a_lock(&bus, "into deposits").await;
    assert_eq!(bus.cancel(id).await.unwrap(), 1);
    guard.commit().await.unwrap();
    works(&bus).await;
    until_nobody_writes(&bus).await;
    assert_eq!(ended(&bus, id).await["status"], "cancelled");
    assert!(deposits(&bus).await.is_empty());
}

async fn until_nobody_writes(bus: &Bus) {
    let writing =
        "select exists (select from pg_locks where relation = 'deposits'::regclass and mode = 'RowExclusiveLock')";
    tokio::time::timeout(PATIENCE, async {
        while sqlx::query_scalar::<_, bool>(writing).fetch_one(bus.pool()).await.unwrap() {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("the transaction does not end");
}

async fn large_result_stands_in_an_artifact(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let text = "ä large result ".repeat(10_000);
    let id = send(&bus, order(json!({"text": text, "snippet": "a large result, much of it"}))).await;
    let row = ended(&bus, id).await;
    assert_eq!(row["result_snippet"], "a large result, much of it", "{row}");
    let digest = row["result_url"].as_str().unwrap().strip_prefix("/artifacts/").unwrap();
    let stored: String = sqlx::query_scalar("select convert_from(content, 'utf8') from bus.get_artifact('acme', $1)")
        .bind(digest)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(stored, text);
}

async fn request_on_behalf_of_a_message_is_answered(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let question = json!({"service": "test", "role": "answer", "payload": {"question": "how many?"}});
    let mut asking = order(json!({"question": question}));
    asking.ttl_ms = Some(600_000);
    asking.headers.insert("traceparent".to_owned(), json!(TRACE));
    let id = send(&bus, asking).await;
    let request = ClaimRequest { route: &ANSWERS, holder: "w", instance: None, max_messages: 1, lease: LONG };
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(asked) = bus.claim(&request).await.unwrap().pop() {
                return asked;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("nobody asks");
    assert_eq!((asked.tenant.as_str(), &asked.headers["traceparent"]), ("acme", &json!(TRACE)));
    assert_ne!(asked.root_id, id, "a task of its own");
    assert!(asked.remaining_ms.unwrap() <= 600_000, "no later than its caller's time");
    let completion = Completion { result: Some(json!({"answer": 42})), ..Completion::default() };
    assert!(bus.complete(&asked.fence(), "w", &completion).await.unwrap());
    let row = ended(&bus, id).await;
    assert_eq!(
        (&row["result"]["reply"]["status"], &row["result"]["reply"]["result"]["answer"]),
        (&json!("done"), &json!(42))
    );
}

async fn failure_says_when_it_is_tried_again(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let id = send(&bus, order(at_first(json!({"failure": {"retry_ms": 3_600_000}})))).await;
    let row = until(&bus, id, |row| !row["retry_at"].is_null()).await;
    assert_eq!(row["status"], "queued");
    assert!(row["error"].as_str().unwrap().contains("as ordered"), "{row}");
    let seconds: f64 = sqlx::query_scalar(
        "select date_part('epoch', retry_at - last_error_at) from public.agent_messages where id = $1",
    )
    .bind(id)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert!((3_599.0..3_601.0).contains(&seconds), "{seconds}");
}

async fn deferred_message_uses_up_no_attempt(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let mut once = order(at_first(json!({"failure": {"defer_ms": 3_600_000}})));
    once.max_attempts = Some(1);
    let id = send(&bus, once).await;
    let row = until(&bus, id, |row| !row["retry_at"].is_null()).await;
    assert_eq!((&row["status"], &row["released"]), (&json!("queued"), &json!(1)), "{row}");
    delays_to_pass(&bus).await;
    assert_eq!(ended(&bus, id).await["status"], "done");
}

async fn follow_ups_inherit_trace_and_time_left(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let next = json!({"service": "test", "role": "answer", "ttl_ms": 86_400_000, "payload": {"next": true}});
    let mut parent = order(json!({"follow_ups": [next]}));
    parent.ttl_ms = Some(600_000);
    parent.headers.insert("traceparent".to_owned(), json!(TRACE));
    let id = send(&bus, parent).await;
    ended(&bus, id).await;
    let (trace, in_time): (Value, bool) = sqlx::query_as(
        "select c.headers -> 'traceparent', c.expires_at <= p.expires_at
           from public.agent_messages c join public.agent_messages p on p.id = c.parent_id where p.id = $1",
    )
    .bind(id)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert_eq!((trace, in_time), (json!(TRACE), true));
}

async fn worker_of_another_shard_takes_only_its_own(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[("AGENT_SHARD", "3")]);
    let elsewhere = send(&bus, order(json!({}))).await;
    let mut own = order(json!({}));
    own.route = own.route.on_shard(3);
    assert_eq!(ended(&bus, send(&bus, own).await).await["status"], "done");
    assert_eq!(bus.message(elsewhere).await.unwrap().unwrap()["attempts"], 0);
}

/// Postgres takes what readers refuse: nested beyond their depth, and numbers of more digits than they count.
async fn message_that_its_reader_cannot_read_costs_no_other(language: Language) {
    let (bus, database) = bus().await;
    let mut refused = Vec::new();
    for payload in [
        "jsonb_build_object('deep', (repeat('[', 1200) || repeat(']', 1200))::jsonb)",
        "jsonb_build_object('n', repeat('9', 4400)::numeric)",
    ] {
        let insert = format!(
            "insert into public.agent_messages (service, role, tenant, payload) values ('test', 'work', 'acme', {payload}) returning id"
        );
        let id: Uuid = sqlx::query_scalar(sqlx::AssertSqlSafe(insert)).fetch_one(bus.pool()).await.unwrap();
        refused.push(id);
    }
    let good = send(&bus, order(json!({}))).await;
    let _worker = language.start(&database.url, &[]);
    assert_eq!(ended(&bus, good).await["status"], "done");
    for id in refused {
        let (status, attempts): (String, i16) =
            sqlx::query_as("select status, attempts from public.agent_messages where id = $1")
                .bind(id)
                .fetch_one(bus.pool())
                .await
                .unwrap();
        assert_eq!((status.as_str(), attempts), ("failed", 1));
    }
}

async fn parts_that_are_sent_at_once_are_stored_in_their_order(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let id = send(&bus, order(json!({"parts": 40}))).await;
    assert_eq!(ended(&bus, id).await["attempts"], 1, "none was refused");
    let parts = bus.partials_after(id, PartialPlace::default(), 100).await.unwrap();
    let numbers: Vec<_> = parts.iter().map(|part| (part.seq, part.content["part"].as_i64())).collect();
    let expected: Vec<_> = (1..=41).map(|seq| (seq, (seq > 1).then(|| i64::from(seq) - 2))).collect();
    assert_eq!(numbers, expected, "one that shows the holder, then those of the order");
}

/// Each waits until all have begun: that one of them finds no connection, or the worker none beside them, ends in a hang.
async fn as_many_write_at_once_as_there_are_hands(language: Language) {
    let (bus, database) = bus().await;
    table_of_deposits(&bus).await;
    sqlx::raw_sql(
        "create sequence public.begun;
         create function public.wait_for_all() returns trigger language plpgsql set search_path = pg_catalog, pg_temp
         as $$ begin
           perform nextval('public.begun');
           while (select last_value from public.begun) < 12 loop perform pg_sleep(0.01); end loop;
           return new;
         end $$;
         create trigger wait_for_all before insert on public.deposits
           for each row execute function public.wait_for_all()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let _worker = language.start(&database.url, &[("CONCURRENCY", "12")]);
    let mut sent = Vec::new();
    for _ in 0..12 {
        sent.push(send(&bus, order(json!({"deposit": 1}))).await);
    }
    for id in sent {
        let row = ended(&bus, id).await;
        assert_eq!((&row["status"], &row["attempts"]), (&json!("done"), &json!(1)), "{row}");
    }
    assert_eq!(deposits(&bus).await.len(), 12);
}

async fn join_reads_what_all_of_its_children_came_to(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let children = json!([{}, {"failure": {"retriable": false}}, {}]);
    let id = send(&bus, order(json!({"fan_out": children}))).await;
    assert_eq!(ended(&bus, id).await["status"], "done");
    let joins = "select id from public.agent_messages where parent_id = $1 and payload ? 'join'";
    let join: Uuid = sqlx::query_scalar(joins).bind(id).fetch_one(bus.pool()).await.unwrap();
    let row = ended(&bus, join).await;
    assert_eq!((&row["status"], &row["attempts"]), (&json!("done"), &json!(1)), "{row}");
    let joined = row["result"]["joined"].as_array().unwrap();
    let statuses: Vec<_> = joined.iter().map(|one| one["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["done", "failed", "done"], "{row}");
    assert!(joined[0]["result"]["holder"].as_str().unwrap().starts_with(language.instance()), "{row}");
    let of_nothing = send(&bus, order(json!({"join": []}))).await;
    assert_eq!(ended(&bus, of_nothing).await["result"]["joined"], json!([]), "a set without rows is an empty list");
}

async fn call_answers_one_row_or_null_and_refuses_more(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let known = [send(&bus, order(json!({}))).await, send(&bus, order(json!({}))).await];
    let none = send(&bus, order(json!({"look_up": []}))).await;
    let row = ended(&bus, none).await;
    assert_eq!((&row["status"], &row["result"]["found"]), (&json!("done"), &Value::Null), "{row}");
    let one = send(&bus, order(json!({"look_up": [known[0]]}))).await;
    assert_eq!(ended(&bus, one).await["result"]["found"]["id"], json!(known[0]));
    let mut several = order(json!({"look_up": known}));
    several.max_attempts = Some(1);
    let row = ended(&bus, send(&bus, several).await).await;
    assert!(row["error"].as_str().unwrap().contains("more than one row"), "{row}");
}

async fn exception_with_a_nul_fails_as_any_other(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[]);
    let mut once = order(json!({"raise": "as was to be"}));
    once.max_attempts = Some(1);
    let row = ended(&bus, send(&bus, once).await).await;
    assert_eq!(row["status"], "failed", "{row}");
    assert!(row["error"].as_str().unwrap().contains("as was to be"), "{row}");
    let again = send(&bus, order(at_first(json!({"raise": "as was to be"})))).await;
    let row = until(&bus, again, |row| !row["retry_at"].is_null() || !row["done_at"].is_null()).await;
    assert_eq!(row["status"], "queued", "{row}");
}
