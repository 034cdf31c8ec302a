//! Start, attach, stop and start again.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use cogo_pg_local::{Cluster, Healed, StopMode, path_key};
use sqlx::{Connection, PgConnection};

use crate::support::{Place, connect, end, keep_a_row, kept_row, signal, small};

#[tokio::test]
async fn data_and_port_survive_a_stop() {
    let place = Place::new();
    let first = Cluster::start(&place.settings()).await.expect("first start");
    keep_a_row(&first).await;
    first.stop(StopMode::Fast).await.expect("stop");
    first.stop(StopMode::Fast).await.expect("stopping twice is no error");
    assert_eq!(first.postmaster_pid(), None);
    assert!(Cluster::attach(&place.cluster()).expect("readable").is_none());

    let second = Cluster::start(&place.settings()).await.expect("second start");
    assert_eq!(second.port(), first.port());
    assert_eq!(kept_row(&second).await, 7);
}

#[tokio::test]
async fn a_second_start_attaches() {
    let place = Place::new();
    assert!(Cluster::attach(&place.cluster()).expect("readable").is_none(), "nothing there yet");
    let first = Cluster::start(&place.settings()).await.expect("first start");
    let second = Cluster::start(&place.settings()).await.expect("second start");
    let attached = Cluster::attach(&place.cluster()).expect("readable").expect("it runs");
    assert!(first.postmaster_pid().is_some());
    for other in [&second, &attached] {
        assert_eq!(other.postmaster_pid(), first.postmaster_pid());
        assert_eq!(other.url("x"), first.url("x"));
        assert_eq!(other.bin_dir(), first.bin_dir());
    }
    assert_eq!(attached.ensure_running().await.expect("healthy"), Healed::NotNeeded);
}

#[tokio::test]
async fn starts_at_the_same_time_end_in_one_server() {
    let place = Place::new();
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let settings = place.settings();
        starts.spawn(async move { Box::pin(Cluster::start(&settings)).await.expect("start").postmaster_pid() });
    }
    let mut servers = starts.join_all().await;
    servers.dedup();
    assert_eq!(servers.len(), 1);
    assert!(servers[0].is_some());
}

#[tokio::test]
async fn the_server_is_set_up_for_one_machine() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.extra.push(("max_connections".to_owned(), "23".to_owned()));
    let cluster = Cluster::start(&settings).await.expect("start");
    let mut connection = connect(&cluster).await;
    for (name, expected) in [
        ("listen_addresses", "127.0.0.1"),
        ("max_connections", "23"),
        ("jit", "off"),
        ("TimeZone", "UTC"),
        ("fsync", "on"),
        ("server_encoding", "UTF8"),
    ] {
        let value: String = sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await
            .expect("setting");
        assert_eq!(value, expected, "{name}");
    }
}

#[tokio::test]
async fn only_the_password_opens_the_server() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    let password = fs::read_to_string(cluster.directory().join("cogo.password")).expect("password");
    assert!(cluster.url("postgres").contains(password.trim()));
    assert!(!format!("{cluster:?}").contains(password.trim()), "the password is not shown");
    for name in ["cogo.password", "cluster.state", "data/cogo.conf"] {
        let mode = fs::metadata(cluster.directory().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    let wrong = cluster.url("postgres").replace(password.trim(), "wrong");
    assert!(PgConnection::connect(&wrong).await.is_err());
}

#[tokio::test]
async fn a_database_is_made_once() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    let mut made = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let cluster = cluster.clone();
        made.spawn(async move { cluster.create_database_if_missing("cogo \"x\"").await });
    }
    made.join_all().await.into_iter().collect::<Result<Vec<()>, _>>().expect("no attempt fails");
    let mut connection = connect(&cluster).await;
    let count: i64 = sqlx::query_scalar("select count(*) from pg_database where datname = 'cogo \"x\"'")
        .fetch_one(&mut connection)
        .await
        .expect("databases");
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_directory_that_postgres_cannot_reach_moves_and_leaves_word() {
    // Private to the caller, as a home directory is.
    let private = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(private.path(), fs::Permissions::from_mode(0o700)).expect("protect");
    let requested = private.path().join("deep").join("cluster");
    let cluster = Cluster::start(&small(&requested)).await.expect("start");
    keep_a_row(&cluster).await;
    let root = rustix::process::geteuid().is_root();
    let requested = requested.canonicalize().expect("requested directory");
    if root {
        assert!(cluster.directory().ends_with(path_key(&requested)), "{}", cluster.directory().display());
        let word = fs::read_to_string(requested.join("moved-to")).expect("word of the move");
        assert_eq!(word.trim(), cluster.directory().to_str().expect("plain path"));
    } else {
        assert_eq!(cluster.directory(), requested);
    }
    let attached = Cluster::attach(&requested).expect("readable").expect("it runs");
    attached.stop(StopMode::Fast).await.expect("stop");
    let again = Cluster::start(&small(&requested)).await.expect("second start");
    assert_eq!(again.directory(), cluster.directory());
    assert_eq!(kept_row(&again).await, 7);
    end(&requested);
}

#[tokio::test]
async fn the_server_runs_as_a_lesser_account_only_when_the_caller_is_root() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    let pid = cluster.postmaster_pid().expect("it runs").to_string();
    let output = Command::new("ps").args(["-o", "uid=", "-p", &pid]).output().expect("ps runs");
    let owner: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
    let own = rustix::process::geteuid();
    assert_eq!(own.is_root(), owner != own.as_raw());
    signal("-QUIT", pid.parse().expect("a number"));
}
