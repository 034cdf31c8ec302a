//! What a watchdog finds after Postgres was killed.

use std::{fs, time::Duration};

use cogo_pg_local::{Cluster, Healed, StopMode};

use crate::support::{Place, connect, keep_a_row, kept_row, signal};

/// Ends the server as the kernel would when memory runs out, and waits until it is gone.
fn kill(cluster: &Cluster) {
    let pid = cluster.postmaster_pid().expect("the server runs");
    signal("-KILL", pid);
    while cluster.postmaster_pid() == Some(pid) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_with_its_rows_on_its_port() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    keep_a_row(&cluster).await;
    for _ in 0..3 {
        kill(&cluster);
        assert_eq!(cluster.ensure_running().await.expect("heal"), Healed::Restarted);
        assert_eq!(cluster.ensure_running().await.expect("healthy"), Healed::NotNeeded);
        assert_eq!(kept_row(&cluster).await, 7);
    }
}

#[tokio::test]
async fn a_busy_orphan_does_not_keep_the_server_down() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    keep_a_row(&cluster).await;
    let mut busy = connect(&cluster).await;
    // Holds the shared memory, and sees the death of its parent only when the query is over.
    let endless = "select count(*) from generate_series(1, 100000000000) as a";
    let query = async { sqlx::query(endless).execute(&mut busy).await };
    let heal = async {
        let mut observer = connect(&cluster).await;
        loop {
            let running: bool = sqlx::query_scalar(
                "select exists (select from pg_stat_activity where query like 'select count(*) from generate%')",
            )
            .fetch_one(&mut observer)
            .await
            .expect("activity");
            if running {
                break;
            }
        }
        kill(&cluster);
        cluster.ensure_running().await
    };
    let (interrupted, healed) = tokio::join!(query, heal);
    assert!(interrupted.is_err());
    assert_eq!(healed.expect("heal"), Healed::Restarted);
    assert_eq!(kept_row(&cluster).await, 7);
}

#[tokio::test]
async fn files_of_a_dead_server_do_not_stop_the_next_one() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    keep_a_row(&cluster).await;
    cluster.stop(StopMode::Immediate).await.expect("stop");
    // The number of a living stranger, as after a restart of the machine.
    let stale = format!("{}\n{}\n", std::process::id(), cluster.directory().join("data").display());
    fs::write(cluster.directory().join("data/postmaster.pid"), &stale).expect("write");
    let socket_lock = cluster.directory().join("socket").join(format!(".s.PGSQL.{}.lock", cluster.port()));
    fs::write(socket_lock, &stale).expect("write");

    let again = Cluster::start(&place.settings()).await.expect("start");
    assert_eq!(kept_row(&again).await, 7);
}

#[tokio::test]
async fn a_start_that_was_cut_off_is_made_good() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    cluster.stop(StopMode::Immediate).await.expect("stop");
    let directory = cluster.directory();
    fs::rename(directory.join("data"), directory.join("data.new")).expect("as if initdb had been killed");

    let again = Cluster::start(&place.settings()).await.expect("start");
    keep_a_row(&again).await;
    assert!(!directory.join("data.new").exists());
}
