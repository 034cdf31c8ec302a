//! A bus with a brain on it, and the steps that the frame would take.

use std::{sync::Arc, time::Duration};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion};
use cogo_contracts::{DecideRequest, NewMessage, Route, Tenant, routes};
use cogo_orchestrator_brain::{Brain, Decision, Policy, Provenance, Settings};
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) const HALF_LIFE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) database: TestDatabase,
    pub(crate) bus: Bus,
    pub(crate) brain: Arc<Brain>,
}

pub(crate) async fn world() -> World {
    world_with(&Settings::default()).await
}

pub(crate) async fn world_with(settings: &Settings) -> World {
    let database = cogo_test_support::database().await;
    let policy = Policy::new(settings).unwrap();
    let brain = Arc::new(Brain::new(database.pool.clone(), policy));
    brain.refresh().await.unwrap();
    World { bus: Bus::new(database.pool.clone()), database, brain }
}

pub(crate) fn request(intent: &str, payload: Value) -> DecideRequest {
    DecideRequest { intent: intent.to_owned(), payload, budget: None, ttl_ms: None }
}

pub(crate) fn ask() -> DecideRequest {
    request("ask", json!({"question": "who calls claim?"}))
}

impl World {
    /// An active agent of this name.
    pub(crate) async fn agent(&self, name: &str, capabilities: &[&str]) {
        let id = Uuid::now_v7();
        sqlx::query("select outcome from registry.register($1, 'test', $2, 0, '1.2.3', $3)")
            .bind(id)
            .bind(name)
            .bind(capabilities)
            .execute(&self.database.pool)
            .await
            .unwrap();
        sqlx::query("select registry.activate($1)").bind(id).execute(&self.database.pool).await.unwrap();
        self.brain.refresh().await.unwrap();
    }

    /// Another candidate for `ask`, on a shard of its own; answers its key.
    pub(crate) async fn candidate(&self, shard: u16, tenant: Option<&str>, cost_prior_usd: f64) -> i64 {
        let id = sqlx::query_scalar(
            "insert into public.orch_targets (intent, tenant, service, role, shard, agent, cost_prior_usd, uses_knowledge)
             values ('ask', $1, 'gateway', 'chat', $2, 'gateway-chat', $3, true) returning target_id",
        )
        .bind(tenant)
        .bind(i32::from(shard))
        .bind(cost_prior_usd)
        .fetch_one(&self.database.pool)
        .await
        .unwrap();
        self.brain.refresh().await.unwrap();
        id
    }

    pub(crate) async fn send(&self, request: &DecideRequest) -> Uuid {
        let payload = serde_json::to_value(request).unwrap();
        let message = NewMessage::new(routes::DECIDE, Some(tenant()), payload);
        self.bus.enqueue(&message).await.unwrap().id
    }

    pub(crate) async fn claim(&self, route: &Route, holder: &str) -> Option<Claimed> {
        let lease = Duration::from_secs(30);
        let request = ClaimRequest { route, holder, instance: None, max_messages: 1, lease };
        self.bus.claim(&request).await.unwrap().pop()
    }

    /// Ends a claim as the frame does: completion and record in one transaction, nothing if the claim was lost.
    pub(crate) async fn finish(&self, claimed: &Claimed, holder: &str, decision: &Decision) -> bool {
        let message = decision.dispatch().unwrap();
        let dispatched = message.id;
        let result = Some(serde_json::to_value(decision.reply()).unwrap());
        let completion = Completion { result, follow_ups: vec![message], ..Completion::default() };
        let provenance = Provenance { message_id: claimed.id, task_id: claimed.root_id, holder: holder.to_owned() };
        let mut transaction = self.database.pool.begin().await.unwrap();
        let ours = Bus::complete_in(&mut transaction, &claimed.fence(), holder, &completion).await.unwrap();
        if ours {
            decision.record(&mut transaction, &provenance, dispatched).await.unwrap();
            transaction.commit().await.unwrap();
        }
        ours
    }

    /// Sends a request through claim, decision and completion; answers the message and the decision on it.
    pub(crate) async fn decide(&self, request: &DecideRequest) -> (Uuid, Decision) {
        let id = self.send(request).await;
        let claimed = self.claim(&routes::DECIDE, "brain").await.unwrap();
        assert_eq!(claimed.id, id);
        let decision = self.brain.decide(&claimed.tenant, request).await.unwrap();
        assert!(self.finish(&claimed, "brain", &decision).await);
        (id, decision)
    }

    /// Work as the dispatcher sends it, credited to a decision.
    pub(crate) async fn dispatched(&self, decision: Uuid, max_attempts: i16) -> Claimed {
        let payload = json!({"question": "x", "__assignment": {"decision_id": decision}});
        let message =
            NewMessage { max_attempts: Some(max_attempts), ..NewMessage::new(routes::CHAT, Some(tenant()), payload) };
        self.bus.enqueue(&message).await.unwrap();
        self.claim(&routes::CHAT, "chat").await.unwrap()
    }

    pub(crate) async fn count(&self, table: &'static str) -> i64 {
        let statement = format!("select count(*) from {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.database.pool).await.unwrap()
    }
}

pub(crate) fn tenant() -> Tenant {
    Tenant::new("acme").unwrap()
}
