//! The checks can fail: what a broken bus would leave in the database is found in it.

use cogo_bus_check::{Invariant, Report, Rest};
use cogo_bus_core::Completion;

use crate::support::{Stage, claim, plain};

/// Longer than any machine is busy.
const LEASE: std::time::Duration = std::time::Duration::from_secs(60);

/// A sound history of ten messages, then one statement that no bus may make.
async fn sabotaged(statement: &'static str) -> Report {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(10)).await.unwrap();
    for message in claim(&bus, "w", 10, LEASE).await {
        assert!(bus.complete(&message.fence(), "w", &Completion::default()).await.unwrap());
    }
    sqlx::query(statement).execute(&stage.pool).await.unwrap();
    stage.scene.verdict(&stage.pool, Rest::Drained).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_stolen_and_doubled_messages_are_found_in_the_database() {
    for (statement, invariant) in [
        (
            "delete from public.agent_messages where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I1,
        ),
        (
            "update public.agent_messages set claimed_by = 'thief' where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I3,
        ),
        (
            "update public.agent_messages set attempts = attempts + 1 where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I3,
        ),
        (
            "insert into public.agent_messages (service, role, tenant, payload) values ('check', 'work', 'acme', '{}')",
            Invariant::I4,
        ),
        (
            "update public.agent_messages set expires_at = claimed_at where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I5,
        ),
        (
            "update public.agent_messages set created_at = created_at + interval '2 hours' where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I5,
        ),
        (
            "update public.agent_messages set tenant = 'globex' where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I7,
        ),
    ] {
        let report = sabotaged(statement).await;
        assert!(report.breaks(invariant), "{statement} is not seen to break {invariant}: {report}");
    }
}
