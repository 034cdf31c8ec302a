//! The matrix of states: the same in Rust and in SQL, and the only way through for whoever writes.

use std::collections::BTreeMap;

use cogo_contracts::AgentState;
use cogo_registry_core::{Registry, Stage};
use cogo_test_support::database;

use super::fleet::registration;

#[tokio::test]
async fn both_matrices_say_the_same_of_every_pair() {
    let database = database().await;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select t.from_state, t.to_state, t.op from registry.transitions t")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let mut stored: BTreeMap<(String, String), String> =
        rows.into_iter().map(|(from, to, op)| ((from, to), op)).collect();
    for from in Stage::ALL {
        for to in Stage::ALL {
            let in_sql = stored.remove(&(from.as_str().to_owned(), to.as_str().to_owned()));
            assert_eq!(in_sql.as_deref(), from.change_to(to).map(|change| change.op), "{from} to {to}");
        }
    }
    assert!(stored.is_empty(), "the database knows other states: {stored:?}");
}

#[tokio::test]
async fn the_database_lets_through_what_the_matrix_allows_and_nothing_else() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    // any path to a state, written by hand as only the owner of the tables can
    let paths = |to: AgentState| -> &'static [&'static str] {
        match to {
            AgentState::Registered => &[],
            AgentState::Active => &["active"],
            AgentState::Suspect => &["active", "suspect"],
            AgentState::Suspended => &["active", "suspended"],
            AgentState::Draining => &["draining"],
            AgentState::Terminated => &["terminated"],
        }
    };
    for (slot, from) in (0_u32..).zip(AgentState::ALL) {
        let membership = registry.register(&registration("rag-embed", slot)).await.unwrap();
        for to in AgentState::ALL {
            let mut transaction = database.pool.begin().await.unwrap();
            let write = "update registry.agents
                            set state = $2, ended_at = case when $2 = 'terminated' then clock_timestamp() end,
                                end_reason = case when $2 = 'terminated' then 'test' end
                          where instance_id = $1";
            for step in paths(from) {
                sqlx::query(write).bind(membership.instance_id).bind(step).execute(&mut *transaction).await.unwrap();
            }
            let written =
                sqlx::query(write).bind(membership.instance_id).bind(to.as_str()).execute(&mut *transaction).await;
            let allowed = from == to || Stage::from(from).change_to(to.into()).is_some();
            assert_eq!(written.is_ok(), allowed, "{from} to {to}: {written:?}");
        }
    }
    let born_active = sqlx::query(
        "insert into registry.agents (instance_id, domain, name, slot, epoch, version, state)
         values (gen_random_uuid(), 'rag', 'other', 0, 1, '1.0.0', 'active')",
    )
    .execute(&database.pool)
    .await;
    assert!(born_active.is_err(), "a life begins as registered");
}

#[tokio::test]
async fn only_active_may_claim_in_both() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = registry.register(&registration("rag-embed", 0)).await.unwrap();
    for step in ["active", "suspect", "active", "suspended", "draining"] {
        sqlx::query("update registry.agents set state = $1").bind(step).execute(&database.pool).await.unwrap();
        let may: bool = sqlx::query_scalar("select registry.may_claim($1)")
            .bind(&membership.holder)
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert_eq!(may, Stage::from(AgentState::from_name(step).unwrap()).may_claim(), "{step}");
    }
}

#[tokio::test]
async fn the_log_cannot_be_rewritten() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    registry.register(&registration("rag-embed", 0)).await.unwrap();
    for statement in ["update registry.log set reason = 'nicer'", "truncate registry.log"] {
        assert!(sqlx::query(statement).execute(&database.pool).await.is_err(), "{statement}");
    }
}
