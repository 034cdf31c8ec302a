//! Event sourcing: whatever happens to a fleet, replaying the log gives the fleet, and so does following it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cogo_registry_core::{Entry, Membership, Registry, Snapshot};
use cogo_test_support::database;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use uuid::Uuid;

use super::{
    fleet::{last_beat, registration},
    view::Following,
};

/// Something that happens to a fleet; numbers choose among the runs there have been.
#[derive(Debug, Clone)]
enum Happening {
    Joins(u32),
    Rides(u32, usize),
    Activates(usize),
    Suspends(usize),
    Resumes(usize),
    Drains(usize),
    Leaves(usize),
    Beats(usize),
    FallsSilent(usize),
    IsSwept,
    IsForgotten,
}

fn happening() -> impl Strategy<Value = Happening> {
    let which = 0..100_usize;
    prop_oneof![
        4 => (0..6_u32).prop_map(Happening::Joins),
        1 => (0..6_u32, which.clone()).prop_map(|(slot, carrier)| Happening::Rides(slot, carrier)),
        4 => which.clone().prop_map(Happening::Activates),
        2 => which.clone().prop_map(Happening::Suspends),
        2 => which.clone().prop_map(Happening::Resumes),
        1 => which.clone().prop_map(Happening::Drains),
        1 => which.clone().prop_map(Happening::Leaves),
        2 => which.clone().prop_map(Happening::Beats),
        2 => which.prop_map(Happening::FallsSilent),
        1 => Just(Happening::IsSwept),
        1 => Just(Happening::IsForgotten),
    ]
}

async fn happen(registry: &Registry, pool: &sqlx::PgPool, runs: &mut Vec<Membership>, what: &Happening) {
    let run = |number: &usize| runs.get(number % runs.len().max(1)).cloned();
    // refusals are part of the game: a run may have ended, or be in the wrong state
    match what {
        Happening::Joins(slot) => {
            let joining = registration("rag-embed", *slot).capability("embed").unwrap().tag("zone:a").unwrap();
            runs.push(registry.register(&joining).await.unwrap());
        }
        Happening::Rides(slot, carrier) => {
            let Some(carrier) = run(carrier) else { return };
            let joining = registration("rag-rider", *slot).carried_by(carrier.instance_id);
            runs.extend(registry.register(&joining).await.ok());
        }
        Happening::Activates(number) => drop(for_run(run(number), |id| registry.activate(id)).await),
        Happening::Suspends(number) => drop(for_run(run(number), |id| registry.suspend(id)).await),
        Happening::Resumes(number) => drop(for_run(run(number), |id| registry.resume(id)).await),
        Happening::Drains(number) => drop(for_run(run(number), |id| registry.drain(id)).await),
        Happening::Leaves(number) => drop(for_run(run(number), |id| registry.deregister(id, "left")).await),
        Happening::Beats(number) => {
            let Some(member) = run(number) else { return };
            let next: Option<i64> =
                sqlx::query_scalar("select b.seq + 1 from registry.beats b where b.instance_id = $1")
                    .bind(member.instance_id)
                    .fetch_optional(pool)
                    .await
                    .unwrap();
            let _ = registry.beat(&member, next.unwrap_or(1), 0).await;
        }
        Happening::FallsSilent(number) => {
            let Some(member) = run(number) else { return };
            last_beat(pool, &member, Duration::from_secs(3600)).await;
            // seen before it is long enough for death
            sqlx::query("select * from registry.sweep('50 ms', '1 day')").execute(pool).await.unwrap();
        }
        Happening::IsSwept => {
            sqlx::query("select * from registry.sweep('50 ms', '50 ms')").execute(pool).await.unwrap();
        }
        Happening::IsForgotten => {
            registry.retain(Duration::ZERO, 3).await.unwrap();
        }
    }
}

async fn for_run<T, F>(run: Option<Membership>, order: impl FnOnce(Uuid) -> F) -> Option<T>
where
    F: Future<Output = T>,
{
    Some(order(run?.instance_id).await)
}

fn living(snapshot: &Snapshot) -> BTreeMap<Uuid, Arc<Entry>> {
    snapshot.agents().map(|entry| (entry.id.instance_id, Arc::clone(entry))).collect()
}

/// Lets it all happen on a database of its own; answers how many changes the log had.
async fn check(happenings: &[Happening]) -> Result<usize, TestCaseError> {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let following = Following::start(&registry).await;
    let mut runs = Vec::new();
    for what in happenings {
        happen(&registry, &database.pool, &mut runs, what).await;
    }
    let log = registry.log(0, u32::MAX).await.unwrap();
    let whole = registry.snapshot().await.unwrap();
    prop_assert_eq!(living(&Snapshot::replay(&log)), living(&whole), "replayed");
    following.view.wait_for(whole.version()).await;
    let followed = following.view.look(Clone::clone).unwrap().value;
    prop_assert!(followed == whole, "followed to {} of {}", followed.version(), whole.version());
    prop_assert!(log.windows(2).all(|pair| pair[0].version < pair[1].version));
    for entry in whole.agents() {
        prop_assert_eq!(whole.owner(&entry.id.instance()), Some(entry), "one owner for each slot");
    }
    following.stop().await;
    Ok(log.len())
}

#[test]
fn replaying_or_following_the_log_gives_the_fleet_whatever_happened() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(Config { cases: 16, max_shrink_iters: 40, failure_persistence: None, ..Config::default() });
    let seen = std::cell::Cell::new(0);
    let outcome = runner.run(&prop::collection::vec(happening(), 1..80), |happenings| {
        seen.set(seen.get() + runtime.block_on(check(&happenings))?);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(seen.get() > 100, "the walks went somewhere: {}", seen.get());
}
