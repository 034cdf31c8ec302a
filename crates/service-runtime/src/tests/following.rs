//! A copy of the registry that is kept current by the subscription that the process has anyway.

use cogo_registry_core::{Follower, Query, ViewSettings};

use super::*;
use crate::frame::hurry_on;

#[tokio::test]
async fn subscription_of_the_process_keeps_the_copy_of_the_registry_current() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let hour = Duration::from_secs(3_600);
    // it would not look by itself for as long as the test runs
    let settings = ViewSettings { confirm_every: hour, max_staleness: hour, ..ViewSettings::default() };
    let (follower, view) = Follower::new(&Registry::new(database.pool.clone()), settings);
    let mut hints = wakeups.subscribe();
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.over(database.pool.clone()).run(stop.clone()));
    let (hurried, heard) = (view.clone(), wakeups.subscribe());
    tasks.spawn(async move { hurry_on(hurried, heard).await });
    tasks.spawn(wakeups.run(database.pool.clone(), stop.clone()));
    // from here on changes are told
    tokio::time::timeout(PATIENCE, hints.recv()).await.unwrap().unwrap();
    let (heartbeat, member) = join(&bus);
    let until = stop.clone();
    tasks.spawn(async move {
        heartbeat.run(until).await;
    });
    member.activate();
    let seen = async {
        while view.discover(&Query::name("test-work")).map_or(0, |found| found.value.len()) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the change is told");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}
