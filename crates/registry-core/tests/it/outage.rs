//! Postgres is killed and comes back: no process ends, none is registered twice, no message is lost.

use std::{collections::BTreeSet, time::Duration};

use cogo_registry_core::{Ended, Registry};
use cogo_test_support::{PrivateCluster, private_cluster};
use sqlx::PgPool;
use tokio::time::timeout;

use super::{
    fleet::{active, claimed_by, last_beat, state, status},
    heartbeat::{PAUSE, Running},
};

/// Seconds from the start of the server to the last time that agents could reach it anew; none while they cannot.
async fn came_back_after(pool: &PgPool) -> Option<f64> {
    let query = "
        select extract(epoch from clock_timestamp() - pg_postmaster_start_time() - registry.database_up_for())
          ::double precision";
    sqlx::query_scalar(query).fetch_one(pool).await.ok()
}

async fn fleet(cluster: &PrivateCluster) -> (Registry, Vec<Running>) {
    let registry = Registry::new(cluster.pool.clone());
    let mut fleet: Vec<Running> = (0..4).map(|slot| Running::start(&registry, "rag-embed", slot)).collect();
    for running in &mut fleet {
        running.member.activate();
        running.until_active().await;
    }
    (registry, fleet)
}

#[tokio::test]
async fn a_killed_database_ends_no_process_and_leaves_one_owner_for_each_slot() {
    let cluster = private_cluster().await;
    let (registry, mut fleet) = fleet(&cluster).await;
    let holder = fleet[0].until_active().await;
    let message = claimed_by(&cluster.pool, &holder.holder).await;

    cluster.kill();
    for running in &mut fleet {
        running.until("fenced", |standing| standing.claiming().is_none()).await;
    }
    cluster.heal().await;
    let mut instances = BTreeSet::new();
    for running in &mut fleet {
        instances.insert(running.until_active().await.instance_id);
        assert!(!running.task.is_finished());
    }
    assert_eq!(state(&cluster.pool, &holder).await, "active", "the database was away, not the agent");
    let living = registry.list().await.unwrap();
    assert_eq!(living.iter().map(|agent| agent.id.instance_id).collect::<BTreeSet<_>>(), instances);
    assert_eq!(living.len(), 4);
    assert_eq!(status(&cluster.pool, message).await, "claimed", "its lease is still good");
    let outcome = registry.sweep(Duration::from_secs(15), Duration::from_secs(30)).await.unwrap();
    assert_eq!((outcome.suspected, outcome.died), (0, 0));

    // one that died while the database was away is found once the database has been up for long enough, which is longer
    // than a busy machine keeps the others from beating
    fleet[0].task.abort();
    let silent_for = Duration::from_secs(15);
    let found = async {
        loop {
            // a beat that was under way when its task ended may still arrive
            last_beat(&cluster.pool, &holder, Duration::from_secs(3600)).await;
            let outcome = registry.sweep(silent_for, silent_for).await.unwrap();
            if outcome.died > 0 {
                return outcome;
            }
            tokio::time::sleep(10 * PAUSE).await;
        }
    };
    let outcome = timeout(Duration::from_secs(120), found).await.expect("the dead are found");
    assert_eq!((outcome.died, outcome.requeued), (1, 1));
    assert_eq!(status(&cluster.pool, message).await, "queued");
    for running in fleet.drain(1..) {
        running.token.cancel();
        running.task.await.unwrap();
    }
    assert!(registry.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_crash_of_one_backend_counts_as_a_restart() {
    let cluster = private_cluster().await;
    let victim_pool = cluster.another_pool();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&victim_pool).await.unwrap();
    let before = came_back_after(&cluster.pool).await.unwrap();
    // so that the times before and after the crash can be told apart
    sqlx::query("select pg_sleep(1)").execute(&cluster.pool).await.unwrap();
    let postmaster = cluster.cluster.postmaster_pid();
    signal("-9", pid);
    let again = async {
        while came_back_after(&cluster.pool).await.is_none_or(|after| after < before + 1.0) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), again).await.expect("the uptime starts anew");
    assert_eq!(cluster.cluster.postmaster_pid(), postmaster, "the server itself went on");
}

#[tokio::test]
async fn a_connection_that_hangs_is_replaced_before_the_process_has_to_fence_itself() {
    let cluster = private_cluster().await;
    let registry = Registry::new(cluster.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    let membership = running.until_active().await;
    let beating = stop_while_idle(&cluster.pool).await;
    let seen = "select b.seq from registry.beats b where b.instance_id = $1";
    let reached = async |sequence: i64| {
        while sqlx::query_scalar::<_, i64>(seen).bind(membership.instance_id).fetch_one(&cluster.pool).await.unwrap()
            < sequence
        {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let now: i64 = sqlx::query_scalar(seen).bind(membership.instance_id).fetch_one(&cluster.pool).await.unwrap();
    timeout(Duration::from_secs(60), reached(now + 3)).await.expect("beats go on over another connection");
    assert_eq!(running.until_active().await, membership);
    signal("-CONT", beating);
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
}

/// Stops the session that beats, between two beats: amid one it would keep the row of the run locked, and nobody could
/// beat for that over another connection.
async fn stop_while_idle(pool: &PgPool) -> i32 {
    let beats = |words: &'static str| {
        // the words are no part of the text, or a look at the sessions would find those that looked before
        sqlx::query_as(
            "select s.pid, s.state from pg_stat_activity s where s.query like $1 and s.pid <> pg_backend_pid()",
        )
        .bind(words)
    };
    let looking = async {
        loop {
            let session: Option<(i32, String)> = beats("%registry.beat(%").fetch_optional(pool).await.unwrap();
            if let Some((pid, _)) = session {
                signal("-STOP", pid);
                let stopped: Option<(i32, String)> = beats("%registry.beat(%").fetch_optional(pool).await.unwrap();
                if stopped == Some((pid, "idle".to_owned())) {
                    return pid;
                }
                signal("-CONT", pid);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), looking).await.expect("it is idle between two beats")
}

#[tokio::test]
async fn a_database_that_stood_still_declares_nobody_dead() {
    let cluster = private_cluster().await;
    let registry = Registry::new(cluster.pool.clone());
    // too few for the guard against mass death
    let members = [active(&registry, "rag-embed", 0).await, active(&registry, "rag-embed", 1).await];
    let sequence = std::cell::Cell::new(0);
    let beat = async || {
        sequence.set(sequence.get() + 1);
        for member in &members {
            registry.beat(member, sequence.get(), 0).await.unwrap();
        }
    };
    let (suspect_after, dead_after) = (Duration::from_secs(8), Duration::from_secs(10));
    let up_for_longer = "select registry.database_up_for() > interval '12 s'";
    let grown_up = async {
        while !sqlx::query_scalar::<_, bool>(up_for_longer).fetch_one(&cluster.pool).await.unwrap() {
            beat().await;
            assert_eq!(registry.sweep(suspect_after, dead_after).await.unwrap().died, 0);
        }
    };
    timeout(Duration::from_secs(60), grown_up).await.expect("the database has been up for longer than death takes");

    stand_still(cluster.cluster.postmaster_pid().unwrap(), Duration::from_secs(12));
    let first = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((first.suspected, first.died, first.held_back), (0, 0, 2), "they had no chance to beat");
    beat().await;
    let second = registry.sweep(suspect_after, dead_after).await.unwrap();
    assert_eq!((second.suspected, second.died, second.held_back), (0, 0, 0));
    for member in &members {
        assert_eq!(state(&cluster.pool, member).await, "active");
    }
}

/// Stops every process of the server for a while, as a machine does that is moved or out of memory.
fn stand_still(postmaster: i32, pause: Duration) {
    let children = |name: &str| {
        let status = std::process::Command::new("pkill").args([name, "-P", &postmaster.to_string()]).status().unwrap();
        assert!(status.success(), "pkill {name} -P {postmaster}");
    };
    signal("-STOP", postmaster);
    children("-STOP");
    std::thread::sleep(pause);
    children("-CONT");
    signal("-CONT", postmaster);
}

fn signal(name: &str, pid: i32) {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill {name} {pid}");
}
