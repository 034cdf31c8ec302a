//! Processes that fight for one slot of the registry: one owns it, and who lost it claims nothing more.

use cogo_bus_check::{Answer, Operation, Outcome, ROUTE, RecordedBus};
use cogo_bus_core::{ClaimRequest, Completion};
use futures_util::future::join_all;
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{LEASE, Stage, plain};

/// Takes the slot over and answers the name of this run, unless it lost the slot again at once.
async fn register(bus: &RecordedBus, pool: &PgPool) -> Option<String> {
    let number = bus.journal().invoked(Operation::Register { name: "checker".to_owned(), slot: 0 });
    let instance = Uuid::now_v7();
    let (holder, epoch): (String, i64) =
        sqlx::query_as("select holder, epoch from registry.register($1, 'check', 'checker', 0, '1.0.0')")
            .bind(instance)
            .fetch_one(pool)
            .await
            .unwrap();
    bus.journal().returned(number, Outcome::Ok(Answer::Member { holder: holder.clone(), epoch }));
    let state: Option<String> =
        sqlx::query_scalar("select registry.activate($1)").bind(instance).fetch_one(pool).await.unwrap();
    (state.as_deref() == Some("active")).then_some(holder)
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_has_one_owner_and_superseded_ones_claim_nothing() {
    let mut stage = Stage::new().await;
    let bus = stage.local("fleet");
    bus.enqueue_many(&plain(200)).await.unwrap();
    join_all((0..4).map(|_| {
        let (bus, pool) = (bus.clone(), stage.pool.clone());
        async move {
            for _ in 0..4 {
                let Some(holder) = register(&bus, &pool).await else { continue };
                for _ in 0..3 {
                    let request =
                        ClaimRequest { route: &ROUTE, holder: &holder, instance: None, max_messages: 5, lease: LEASE };
                    // refused once the slot is another's
                    let Ok(claimed) = bus.claim(&request).await else { break };
                    for message in claimed.iter().take(3) {
                        let _ = bus.complete(&message.fence(), &holder, &Completion::default()).await;
                    }
                }
            }
        }
    }))
    .await;
    // a claim that was under way while its slot was taken over keeps what it got until its lease passes
    stage.workers(2).await;
    stage.keepers(1).await;
    let report = stage.holds().await;
    assert!(report.not_applicable.iter().all(|(invariant, _)| *invariant != cogo_bus_check::Invariant::I8));
}
