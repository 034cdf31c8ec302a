//! One owner of the desired count, fenced by lease and epoch, and decisions that are rows.

use std::time::Duration;

use cogo_registry_core::{Decided, Ownership, PoolClaim, Pools};
use cogo_supervision::autoscale::{Autoscaler, Sample, Settings};
use cogo_test_support::{TestDatabase, database};
use serde_json::json;

fn claim(owner: &str) -> PoolClaim {
    PoolClaim {
        process: "rag-embed".to_owned(),
        owner: owner.to_owned(),
        lease: Duration::from_secs(600),
        min: 1,
        max: 8,
        start: 2,
    }
}

async fn epoch(pools: &Pools, claim: &PoolClaim) -> i64 {
    match pools.own(claim).await.unwrap() {
        Ownership::Mine { epoch, .. } => epoch,
        Ownership::Theirs { owner, .. } => panic!("{owner} owns the pool"),
    }
}

/// The lease of whoever owns the pool has run out.
async fn expire(database: &TestDatabase) {
    sqlx::query("update registry.pools set lease_until = clock_timestamp() - interval '1 ms'")
        .execute(&database.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn two_would_be_owners_have_one_owner_until_the_lease_is_over() {
    let database = database().await;
    let (one_pools, other_pools) = (Pools::new(database.pool.clone()), Pools::new(database.another_pool()));
    let (one, other) = (claim("up#1"), claim("up#2"));
    assert_eq!(one_pools.own(&one).await.unwrap(), Ownership::Mine { epoch: 1, desired: 2 });
    assert_eq!(one_pools.own(&one).await.unwrap(), Ownership::Mine { epoch: 1, desired: 2 }, "renewing is no change");
    let Ownership::Theirs { owner, desired, lease_left } = other_pools.own(&other).await.unwrap() else {
        panic!("the lease still runs");
    };
    assert_eq!((owner.as_str(), desired), ("up#1", 2));
    assert!(lease_left > Duration::from_secs(500));
    let why = json!({"sentence": "Because"});
    assert_eq!(other_pools.decide(&other, 1, 2, 5, &why).await.unwrap(), Decided::NotOwner);

    expire(&database).await;
    assert_eq!(one_pools.decide(&one, 1, 2, 5, &why).await.unwrap(), Decided::NotOwner, "a lease that is over is over");
    assert_eq!(other_pools.own(&other).await.unwrap(), Ownership::Mine { epoch: 2, desired: 2 });
    assert_eq!(one_pools.decide(&one, 1, 2, 5, &why).await.unwrap(), Decided::NotOwner);
    assert!(matches!(other_pools.decide(&other, 2, 2, 5, &why).await.unwrap(), Decided::Recorded { .. }));
    assert!(!one_pools.release(&one, 1).await.unwrap());
    assert!(other_pools.release(&other, 2).await.unwrap());
    assert_eq!(one_pools.own(&one).await.unwrap(), Ownership::Mine { epoch: 3, desired: 5 }, "at once after a release");
    assert_eq!(
        one_pools.decide(&one, 1, 5, 6, &why).await.unwrap(),
        Decided::NotOwner,
        "its own old epoch is fenced too"
    );
}

#[tokio::test]
async fn owners_that_race_for_a_pool_decide_one_after_the_other() {
    let database = database().await;
    let owners: Vec<PoolClaim> = (0..4).map(|number| claim(&format!("up#{number}"))).collect();
    let race = owners.iter().map(|owner| {
        let pools = Pools::new(database.pool.clone());
        async move {
            let mut recorded = 0;
            for _ in 0..20 {
                if let Ownership::Mine { epoch, desired } = pools.own(owner).await.unwrap() {
                    let to = desired % 8 + 1;
                    let why = json!({"sentence": format!("{} at {epoch}", owner.owner)});
                    let decided = pools.decide(owner, epoch, desired, to, &why).await.unwrap();
                    recorded += i64::from(matches!(decided, Decided::Recorded { .. }));
                    pools.release(owner, epoch).await.unwrap();
                }
            }
            recorded
        }
    });
    let mut recorded = 0;
    let mut running: Vec<_> = race.map(Box::pin).collect();
    let all = std::future::poll_fn(|context| {
        running.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Ready(count) => {
                recorded += count;
                false
            }
            std::task::Poll::Pending => true,
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    all.await;
    // each decision begins where the one before ended, and an epoch has one owner
    let (rows, broken, shared): (i64, i64, i64) = sqlx::query_as(
        "select count(*),
                count(*) filter (where d.from_count <> d.before),
                (select count(*) from (select 1 from registry.scaling_decisions e
                                        group by e.epoch having count(distinct e.decided_by) > 1) as s)
           from (select from_count, lag(to_count, 1, 2) over (order by id) as before from registry.scaling_decisions) as d",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!((rows, broken, shared), (recorded, 0, 0));
    assert!(rows > 4, "only {rows} decisions were made");
}

#[tokio::test]
async fn a_decision_of_the_autoscaler_is_a_row_that_explains_itself() {
    let database = database().await;
    let pools = Pools::new(database.pool.clone());
    let owner = claim("up#1");
    let epoch = epoch(&pools, &owner).await;
    let settings = Settings { max: 8, hold_up: Duration::ZERO, ..Settings::default() };
    let decision = Autoscaler::new(settings).unwrap().decide(Sample {
        at: Duration::ZERO,
        current: 2,
        ready: 2,
        queued: 500,
        oldest_age: Duration::from_secs(12),
        in_flight: 2,
        ended: 6,
        over: Duration::from_secs(3),
        service_time: Some(Duration::from_millis(800)),
    });
    assert_eq!(decision.desired, 8);
    let decided = pools.decide(&owner, epoch, 2, decision.desired, &decision).await.unwrap();
    let Decided::Recorded { decision_id } = decided else { panic!("{decided:?}") };
    let [row] = pools.decisions("rag-embed", 10).await.unwrap().try_into().unwrap();
    assert_eq!((row.id, row.from_count, row.to_count, row.decided_by.as_str()), (decision_id, 2, 8, "up#1"));
    assert_eq!((row.wanted, row.sentence), (i32::try_from(decision.wanted).unwrap(), decision.sentence));
    assert_eq!(row.inputs["queued"], 500);
    assert_eq!(row.candidates.as_array().unwrap().len(), decision.candidates.len());
    assert_eq!(row.limits[0]["kind"], "max");
    let [pool] = pools.list().await.unwrap().try_into().unwrap();
    assert_eq!((pool.desired, pool.min_count, pool.max_count, pool.decided_at.is_some()), (8, 1, 8, true));

    assert_eq!(pools.retain_decisions(Duration::from_secs(3600), 10).await.unwrap(), 0);
    assert_eq!(pools.retain_decisions(Duration::ZERO, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn a_decision_on_an_old_view_or_out_of_bounds_is_refused() {
    let database = database().await;
    let pools = Pools::new(database.pool.clone());
    let owner = claim("up#1");
    let epoch = epoch(&pools, &owner).await;
    let why = json!({"sentence": "Because"});
    assert_eq!(pools.decide(&owner, epoch, 7, 3, &why).await.unwrap(), Decided::Changed { desired: 2 });
    assert!(pools.decide(&owner, epoch, 2, 9, &why).await.is_err(), "above the most");
    assert!(pools.decide(&owner, epoch, 2, 0, &why).await.is_err(), "below the least");
    assert!(pools.decide(&owner, epoch, 2, 3, &json!({})).await.is_err(), "without a sentence");
    assert!(pools.decisions("rag-embed", 10).await.unwrap().is_empty());
    let nobody = PoolClaim { process: "nobody".to_owned(), ..owner.clone() };
    assert_eq!(pools.decide(&nobody, epoch, 2, 3, &why).await.unwrap(), Decided::NotOwner);
}

#[tokio::test]
async fn the_owner_moves_the_bounds_and_bad_bounds_are_refused() {
    let database = database().await;
    let pools = Pools::new(database.pool.clone());
    let owner = claim("up#1");
    pools.own(&owner).await.unwrap();
    let tighter = PoolClaim { min: 4, max: 6, ..owner.clone() };
    assert_eq!(pools.own(&tighter).await.unwrap(), Ownership::Mine { epoch: 1, desired: 4 });
    let stranger = PoolClaim { min: 0, max: 1, ..claim("up#2") };
    assert!(matches!(pools.own(&stranger).await.unwrap(), Ownership::Theirs { desired: 4, .. }));
    for bad in [
        PoolClaim { min: 7, max: 6, ..owner.clone() },
        PoolClaim { lease: Duration::ZERO, ..owner.clone() },
        PoolClaim { owner: String::new(), ..owner.clone() },
        PoolClaim { process: "../evil".to_owned(), ..owner.clone() },
    ] {
        assert!(pools.own(&bad).await.is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn many_pools_are_owned_at_once_each_on_its_own_terms() {
    let database = database().await;
    let pools = Pools::new(database.pool.clone());
    let other = PoolClaim { process: "kg-builder".to_owned(), min: 2, max: 3, start: 3, ..claim("up#1") };
    let theirs = PoolClaim { process: "gateway-chat".to_owned(), ..claim("up#1") };
    assert_eq!(epoch(&pools, &PoolClaim { owner: "up#2".to_owned(), ..theirs.clone() }).await, 1);
    let mine = claim("up#1");
    let mut owned = Pools::own_all(&database.pool, &[&mine, &other, &theirs]).await.unwrap();
    owned.sort_by(|one, another| one.0.cmp(&another.0));
    let [(gateway, Ownership::Theirs { owner, .. }), builder, embed] = owned.as_slice() else { panic!("{owned:?}") };
    assert_eq!((gateway.as_str(), owner.as_str()), ("gateway-chat", "up#2"));
    assert_eq!(*builder, ("kg-builder".to_owned(), Ownership::Mine { epoch: 1, desired: 3 }));
    assert_eq!(*embed, ("rag-embed".to_owned(), Ownership::Mine { epoch: 1, desired: 2 }));
    assert_eq!(Pools::own_all(&database.pool, &[]).await.unwrap(), []);
}
