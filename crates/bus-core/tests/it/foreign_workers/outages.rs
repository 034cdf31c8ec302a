//! Connections that break or go silent, and a Postgres that is killed: the workers go on.

use cogo_bus_core::Bus;
use serde_json::{Value, json};

use super::{
    language::{
        Language, NO_POLL, THEIR_NAME, at_first, begun, ended, exit_code, hangs, in_both_languages, order, send,
        signal, works,
    },
    line::{Fault, Line},
};
use crate::support::{bus, misplaced};

/// In the payload of a message, and thereby in the answer to the claim of it.
const WORD: &str = "the answer is lost";

in_both_languages!(
    broken_connections_cost_no_work,
    message_whose_claim_was_not_heard_is_handed_back_at_once,
    half_open_connection_is_left_for_another,
    restart_of_postgres_costs_no_work,
    database_that_is_away_holds_up_no_end,
    refusals_that_pass_cost_no_attempt,
);

/// Ends all connections of the workers; answers how many there were.
async fn cut_all(bus: &Bus) -> usize {
    let cut: Vec<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and application_name = $1",
    )
    .bind(THEIR_NAME)
    .fetch_all(bus.pool())
    .await
    .unwrap();
    cut.len()
}

async fn broken_connections_cost_no_work(language: Language) {
    let (bus, database) = bus().await;
    let _worker = language.start(&database.url, &[NO_POLL]);
    works(&bus).await;
    let in_hand = send(&bus, order(at_first(json!({"work_ms": 1_500})))).await;
    begun(&bus, in_hand).await;
    assert!(cut_all(&bus).await >= 2, "one to ask, one to listen");
    let row = ended(&bus, in_hand).await;
    assert_eq!((&row["status"], &row["attempts"]), (&json!("done"), &json!(1)), "{row}");
    // hints are heard again
    works(&bus).await;
    works(&bus).await;
}

async fn message_whose_claim_was_not_heard_is_handed_back_at_once(language: Language) {
    let (bus, database) = bus().await;
    let line = Line::to(&database.url, WORD, Fault::Cut).await;
    let _worker = language.start(&line.url, &[]);
    works(&bus).await;
    let id = send(&bus, order(json!({"said": WORD}))).await;
    was_handed_back(&ended(&bus, id).await);
    assert!(line.sprung() >= 2, "one answer was lost, another was heard");
    assert_eq!(misplaced(&bus).await, 0);
}

/// Long before its lease, and no attempt counts but the last; more than once only where an answer took too long.
fn was_handed_back(row: &Value) {
    let (attempts, released) = (row["attempts"].as_i64().unwrap(), row["released"].as_i64().unwrap());
    assert!(row["status"] == "done" && released >= 1 && attempts == released + 1, "{row}");
}

async fn half_open_connection_is_left_for_another(language: Language) {
    let (bus, database) = bus().await;
    let line = Line::to(&database.url, WORD, Fault::Silence).await;
    let _worker = language.start(&line.url, &[("PATIENCE_MS", "2000")]);
    works(&bus).await;
    let id = send(&bus, order(json!({"said": WORD}))).await;
    was_handed_back(&ended(&bus, id).await);
    works(&bus).await;
}

async fn restart_of_postgres_costs_no_work(language: Language) {
    let private = cogo_test_support::private_cluster().await;
    let bus = Bus::new(private.pool.clone());
    let _worker = language.start(&private.url, &[NO_POLL]);
    works(&bus).await;
    let in_hand = send(&bus, order(at_first(json!({"work_ms": 1_500})))).await;
    begun(&bus, in_hand).await;
    private.kill();
    private.heal().await;
    let bus = Bus::new(private.another_pool());
    let row = ended(&bus, in_hand).await;
    assert_eq!((&row["status"], &row["attempts"]), (&json!("done"), &json!(1)), "{row}");
    works(&bus).await;
    works(&bus).await;
}

async fn database_that_is_away_holds_up_no_end(language: Language) {
    let (bus, database) = bus().await;
    let line = Line::to(&database.url, WORD, Fault::Cut).await;
    let mut worker = language.start(&line.url, &[]);
    let id = send(&bus, order(hangs())).await;
    begun(&bus, id).await;
    drop(line);
    signal(&worker, "-TERM");
    assert_eq!(exit_code(&mut worker).await, Some(1), "what it had is not handed back");
    let claims = "select count(*) from bus.claims";
    let held: i64 = sqlx::query_scalar(claims).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(held, 1, "until its lease lapses");
}

async fn refusals_that_pass_cost_no_attempt(language: Language) {
    let (bus, database) = bus().await;
    // as a server that another takes over from, one whose disk fails, and one that is locked for a moment
    sqlx::raw_sql(
        "create sequence public.tries;
         create or replace function bus.emit_one(
           id uuid, holder text, attempt smallint, seq integer, part jsonb, lease_ms bigint)
         returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
         declare
           code constant text := ('{25006,58030,55P03}'::text[])[nextval('public.tries')];
         begin
           if code is not null then
             raise exception 'not now' using errcode = code;
           end if;
           return bus.emit(id, holder, attempt, seq, array[part], lease_ms);
         end $$",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let _worker = language.start(&database.url, &[]);
    let row = works(&bus).await;
    assert_eq!((&row["attempts"], &row["error"]), (&json!(1), &Value::Null), "{row}");
    let tries: i64 = sqlx::query_scalar("select last_value from public.tries").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(tries, 4);
}
