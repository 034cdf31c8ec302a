//! Settings that are changed while a process runs, and taken back when that makes it unready.

use std::sync::{Mutex, atomic::AtomicBool};

use cogo_registry_core::{ConfigWatcher, Proposal, RolloutState};
use cogo_supervision::probe::{Kind, Spec};
use serde::Serialize;
use tokio::runtime::Handle;

use super::*;
use crate::{
    entry::work,
    health::{Health, probe},
    live::{LivePart, LiveSettings},
};

/// The only setting; 99 makes the process unready.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Own {
    limit: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_makes_a_process_unready_is_taken_back() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, leave) = (Stop::default(), CancellationToken::new());
    let (heartbeat, member) = join(&bus);
    let mut tasks = JoinSet::new();
    let until_left = leave.clone();
    tasks.spawn(async move {
        heartbeat.run(until_left).await;
    });
    member.activate();
    member.standing().wait_for(|now| now.claiming().is_some()).await.unwrap();

    let (well, given) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let health = Health::default();
    let asked = Arc::clone(&well);
    let period = Duration::from_millis(10);
    // no answer is late, however busy the machine is
    let spec = Spec { period, timeout: PATIENCE, failure_threshold: 1, ..Spec::new("disk", Kind::Readiness) };
    let answer = move || std::future::ready(if asked.load(Ordering::SeqCst) { Ok(()) } else { Err("full".to_owned()) });
    health.ask(vec![probe(spec, Handle::current(), answer)], Handle::current()).unwrap();
    let (throttle, taken) = (Throttle::default(), Arc::clone(&given));
    let part = LivePart::<Own> {
        keys: &["limit"],
        check: Box::new(|_| Ok(())),
        apply: Box::new(move |own| {
            taken.lock().unwrap().push(own.limit);
            well.store(own.limit != 99, Ordering::SeqCst);
            Box::pin(std::future::ready(Ok(())))
        }),
    };
    let live = LiveSettings {
        settings: Own { limit: 1 },
        check: |_| Ok(()),
        throttle: throttle.clone(),
        part: Some(part),
        is_changed: false,
    };
    let registry = Registry::new(database.pool.clone());
    let configuring = ConfigWatcher::new(&registry, &member, live, Duration::from_millis(20)).run(leave.clone());
    tasks.spawn(async move {
        configuring.await;
    });
    let (ending, watched) = (stop.clone(), member.clone());
    let working = TaskTracker::new().spawn(async move { work(Vec::new(), &watched, &health, &ending).await });
    let fleet_counts_it_as_ready = async {
        while !registry.list().await.unwrap()[0].ready {
            member.ask_now();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, fleet_counts_it_as_ready).await.unwrap();

    let rolled_out = async |document: Value, settle_ms: i32| {
        let document = document.as_object().unwrap().clone();
        let proposal = Proposal::new("test").set("test-work", document).within(60_000, settle_ms);
        let version = registry.propose_config(&proposal).await.unwrap();
        member.ask_now();
        let ending = async {
            loop {
                let rollout = registry.rollout(version).await.unwrap().unwrap();
                if !matches!(rollout.state, RolloutState::Validating | RolloutState::Applying) {
                    return rollout.state;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE * 2, ending).await.expect("a rollout ends")
    };
    assert_eq!(rolled_out(json!({"concurrency": 2, "limit": 5}), 0).await, RolloutState::Live);
    assert_eq!((throttle.most(8), given.lock().unwrap().clone()), (2, vec![5]));
    assert_eq!(rolled_out(json!({"concurrency": 0}), 0).await, RolloutState::Refused);
    assert_eq!(rolled_out(json!({"concurrency": 3, "limit": 99}), 600_000).await, RolloutState::RolledBack);
    let taken_back = async {
        while given.lock().unwrap().last() != Some(&5) || throttle.most(8) != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_back).await.expect("it works as before");
    assert_eq!(*given.lock().unwrap(), [5, 99, 5]);

    stop.soft().cancel();
    working.await.unwrap().unwrap();
    leave.cancel();
    while tasks.join_next().await.is_some() {}
}
