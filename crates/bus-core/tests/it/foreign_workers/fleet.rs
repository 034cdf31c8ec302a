//! The example workers as members of the fleet.

use cogo_bus_core::Bus;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use super::language::{
    Language, PATIENCE, PAUSE, at_first, begun, ended, exit_code, hangs, in_both_languages, order, send, until, works,
};
use crate::support::bus;

in_both_languages!(
    agent_works_under_the_name_that_the_registry_gave_it,
    suspended_agent_finishes_what_it_has_and_claims_nothing_until_it_is_resumed,
    drained_agent_finishes_and_leaves,
    agent_whose_run_was_ended_comes_back_as_another,
    agent_whose_slot_was_taken_ends,
    agent_needs_no_more_than_the_service_role,
);

#[derive(sqlx::FromRow)]
struct Run {
    instance_id: Uuid,
    holder: String,
    epoch: i64,
    state: String,
}

/// The run that owns the slot of an agent.
async fn owner(bus: &Bus, language: Language) -> Option<Run> {
    sqlx::query_as(
        "select instance_id, holder, epoch, state from registry.agents
          where name || '/' || slot = $1 and state <> 'terminated'",
    )
    .bind(language.instance())
    .fetch_optional(bus.pool())
    .await
    .unwrap()
}

/// Waits until the slot is owned by an active run that is not `former`.
async fn active(bus: &Bus, language: Language, former: Option<Uuid>) -> Run {
    timeout(PATIENCE, async {
        loop {
            match owner(bus, language).await {
                Some(run) if run.state == "active" && Some(run.instance_id) != former => return run,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    })
    .await
    .expect("no agent joins")
}

async fn tell(bus: &Bus, wish: &str, run: &Run) {
    let query = format!("select registry.{wish}($1, 'a test')");
    sqlx::query(sqlx::AssertSqlSafe(query)).bind(run.instance_id).execute(bus.pool()).await.unwrap();
}

async fn beats(bus: &Bus, run: &Run) -> i64 {
    sqlx::query_scalar("select seq from registry.beats where instance_id = $1")
        .bind(run.instance_id)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

async fn agent_works_under_the_name_that_the_registry_gave_it(language: Language) {
    let (bus, database) = bus().await;
    let _agent = language.start_agent(&database.url, &[]);
    let run = active(&bus, language, None).await;
    assert_eq!(works(&bus).await["result"]["holder"], run.holder);
    timeout(PATIENCE, async {
        while beats(&bus, &run).await < 3 {
            tokio::time::sleep(PAUSE).await
        }
    })
    .await
    .unwrap();
}

async fn suspended_agent_finishes_what_it_has_and_claims_nothing_until_it_is_resumed(language: Language) {
    let (bus, database) = bus().await;
    let _agent = language.start_agent(&database.url, &[("BUS_POLL_MS", "50")]);
    let run = active(&bus, language, None).await;
    let in_hand = send(&bus, order(at_first(json!({"work_ms": 700})))).await;
    begun(&bus, in_hand).await;
    tell(&bus, "suspend", &run).await;
    let waiting = send(&bus, order(json!({}))).await;
    assert_eq!(ended(&bus, in_hand).await["attempts"], 1);
    let seen = beats(&bus, &run).await;
    timeout(PATIENCE, async {
        while beats(&bus, &run).await < seen + 5 {
            tokio::time::sleep(PAUSE).await
        }
    })
    .await
    .unwrap();
    assert_eq!(bus.message(waiting).await.unwrap().unwrap()["attempts"], 0);
    tell(&bus, "resume", &run).await;
    assert_eq!(ended(&bus, waiting).await["status"], "done");
}

async fn drained_agent_finishes_and_leaves(language: Language) {
    let (bus, database) = bus().await;
    let mut agent = language.start_agent(&database.url, &[("GRACE_MS", "100000")]);
    let run = active(&bus, language, None).await;
    let in_hand = send(&bus, order(at_first(json!({"work_ms": 700})))).await;
    begun(&bus, in_hand).await;
    tell(&bus, "drain", &run).await;
    let waiting = send(&bus, order(json!({}))).await;
    assert_eq!(exit_code(&mut agent).await, Some(0));
    assert_eq!(ended(&bus, in_hand).await["attempts"], 1);
    assert_eq!(bus.message(waiting).await.unwrap().unwrap()["attempts"], 0);
    let reason: String = sqlx::query_scalar("select end_reason from registry.agents where instance_id = $1")
        .bind(run.instance_id)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(reason, "stopped");
}

async fn agent_whose_run_was_ended_comes_back_as_another(language: Language) {
    let (bus, database) = bus().await;
    let _agent = language.start_agent(&database.url, &[]);
    let run = active(&bus, language, None).await;
    let lost = send(&bus, order(hangs())).await;
    assert_eq!(begun(&bus, lost).await, run.holder);
    // as a sweep does with one that is dead
    sqlx::query("select registry.deregister($1, $2, 'a test')")
        .bind(run.instance_id)
        .bind(run.epoch)
        .execute(bus.pool())
        .await
        .unwrap();
    let next = active(&bus, language, Some(run.instance_id)).await;
    assert!(next.epoch > run.epoch);
    let row = until(&bus, lost, |row| !row["done_at"].is_null()).await;
    assert_eq!((&row["status"], &row["result"]["holder"]), (&json!("done"), &json!(next.holder)), "{row}");
}

async fn agent_whose_slot_was_taken_ends(language: Language) {
    let (bus, database) = bus().await;
    let mut agent = language.start_agent(&database.url, &[]);
    active(&bus, language, None).await;
    let (name, slot) = language.instance().split_once('/').unwrap();
    sqlx::query("select * from registry.register($1, 'test', $2, $3, '1.0.0')")
        .bind(Uuid::now_v7())
        .bind(name)
        .bind(slot.parse::<i32>().unwrap())
        .execute(bus.pool())
        .await
        .unwrap();
    let code = timeout(PATIENCE, exit_code(&mut agent)).await.unwrap();
    assert_eq!(code, Some(1));
}

async fn agent_needs_no_more_than_the_service_role(language: Language) {
    let (bus, database) = bus().await;
    let url = format!("{}?options=-c%20role%3Dservice_role", database.url);
    let mut agent = language.start_agent(&url, &[]);
    let run = active(&bus, language, None).await;
    let question = json!({"service": "test", "role": "work", "payload": {}});
    let next = json!({"service": "test", "role": "work", "payload": {}});
    let all = json!({"text": "a result", "question": question, "follow_ups": [next]});
    let row = ended(&bus, send(&bus, order(all)).await).await;
    assert_eq!((&row["status"], &row["result"]["reply"]["status"]), (&json!("done"), &json!("done")), "{row}");
    tell(&bus, "drain", &run).await;
    assert_eq!(exit_code(&mut agent).await, Some(0));
}
