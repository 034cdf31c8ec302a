//! The checks can fail: what a broken bus would leave in the database is found in it.

use std::time::Duration;

use cogo_bus_check::{Invariant, RecordedBus, Report, Rest, Rows, check};
use cogo_bus_core::Completion;

use crate::support::{Stage, claim, plain};

/// Longer than any machine is busy.
const LEASE: Duration = Duration::from_secs(60);

/// A statement that changes nothing: the histories themselves are sound.
const NOTHING: &str = "select 1";

/// Sends this many and completes each with so many follow-ups.
async fn complete_all(bus: &RecordedBus, messages: usize, follow_ups: usize) {
    bus.enqueue_many(&plain(messages)).await.unwrap();
    let completion = Completion { follow_ups: plain(follow_ups), ..Completion::default() };
    for message in claim(bus, "w", u16::try_from(messages).unwrap(), LEASE).await {
        assert!(bus.complete(&message.fence(), "w", &completion).await.unwrap());
    }
}

/// A sound history of ten messages, then one statement that no bus may make.
async fn sabotaged(statement: &'static str) -> Report {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    complete_all(&bus, 10, 0).await;
    sqlx::query(statement).execute(&stage.pool).await.unwrap();
    stage.scene.verdict(&stage.pool, Rest::Drained).await.unwrap()
}

/// A sound history in which one message has not ended, judged as it stands: who came to finish what stands nowhere would
/// look for it for a minute.
async fn sabotaged_unfinished(statement: &'static str) -> Report {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    complete_all(&bus, 2, 0).await;
    bus.enqueue_many(&plain(1)).await.unwrap();
    sqlx::query(statement).execute(&stage.pool).await.unwrap();
    let rows = Rows::load(&stage.pool).await.unwrap();
    check(&stage.scene.history().unwrap(), &rows, Rest::Drained)
}

/// A sound history from which retention has removed something, with a task of two messages and one that has not ended.
async fn sabotaged_after_retention(statement: &'static str) -> Report {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    loop {
        complete_all(&bus, 1, 0).await;
        // one that was sent this very millisecond, or before midnight, stays
        if bus.retain(Duration::ZERO, 10).await.unwrap() > 0 {
            break;
        }
    }
    complete_all(&bus, 1, 1).await;
    bus.enqueue_many(&plain(1)).await.unwrap();
    sqlx::query(statement).execute(&stage.pool).await.unwrap();
    stage.scene.verdict(&stage.pool, Rest::Drained).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_stolen_and_doubled_messages_are_found_in_the_database() {
    let sound = sabotaged(NOTHING).await;
    assert!(sound.violations.is_empty(), "{sound}");
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
        (
            "update public.agent_messages set status = 'cancelled' where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I2,
        ),
        (
            "update public.agent_messages set attempts = max_attempts + 1 where id = (select id from public.agent_messages order by id limit 1)",
            Invariant::I2,
        ),
        (
            "insert into bus.dead_letters (id, failed_at, route, tenant) values (gen_random_uuid(), now(), 'check/work/0', 'acme')",
            Invariant::I10,
        ),
        (
            "do $$ begin
               drop index registry.agents_one_owner;
               insert into registry.agents (instance_id, domain, name, slot, epoch, version)
               select gen_random_uuid(), 'check', 'checker', 0, epoch, '1.0.0' from generate_series(1, 2) as epoch;
             end $$",
            Invariant::I8,
        ),
    ] {
        let report = sabotaged(statement).await;
        assert!(report.breaks(invariant), "{statement} is not seen to break {invariant}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_message_that_stands_nowhere_is_found_in_the_database() {
    let is_nowhere = |report: &Report| {
        report.violations.iter().any(|found| found.invariant == Invariant::I2 && found.what.contains("nowhere"))
    };
    // it has not ended, which is all that can be said against it
    let waiting = sabotaged_unfinished(NOTHING).await;
    assert!(!is_nowhere(&waiting), "{waiting}");
    let lost = sabotaged_unfinished("delete from bus.ready").await;
    assert!(is_nowhere(&lost), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_may_not_remove_is_missed_in_the_database() {
    let sound = sabotaged_after_retention(NOTHING).await;
    assert!(sound.violations.is_empty(), "{sound}");
    for statement in [
        "delete from public.agent_messages where done_at is null and parent_id is null",
        "delete from public.agent_messages where id in (select parent_id from public.agent_messages)",
    ] {
        let report = sabotaged_after_retention(statement).await;
        assert!(report.breaks(Invariant::I9), "{statement} is not seen to break {}: {report}", Invariant::I9);
    }
}
