//! What cannot work is refused with the next step.

use std::{fs, net::TcpListener, path::PathBuf};

use cogo_pg_local::{Cluster, Error, StopMode};

use crate::support::Place;

#[tokio::test]
async fn missing_programs_are_named() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.bin_dir = Some(PathBuf::from("/nowhere/bin"));
    let error = Cluster::start(&settings).await.expect_err("nothing to start");
    assert!(matches!(error, Error::NoProgramsIn(_)), "{error}");
    assert!(error.to_string().contains("/nowhere/bin"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let place = Place::new();
    let other = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let taken = other.local_addr().expect("address").port();
    let mut settings = place.settings();
    settings.port = Some(taken);
    let error = Cluster::start(&settings).await.expect_err("the port is taken");
    assert!(matches!(error, Error::PortTaken(port) if port == taken), "{error}");
    drop(other);
    assert_eq!(Cluster::start(&settings).await.expect("now it is free").port(), taken);
}

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_explained_by_its_log() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.extra.push(("max_connections".to_owned(), "many".to_owned()));
    let error = Cluster::start(&settings).await.expect_err("not a number");
    assert!(error.to_string().contains("max_connections"), "{error}");
}

#[tokio::test]
async fn data_of_another_version_is_left_alone() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    cluster.stop(StopMode::Fast).await.expect("stop");
    fs::write(cluster.directory().join("data/PG_VERSION"), "8\n").expect("write");
    let error = Cluster::start(&place.settings()).await.expect_err("another version");
    assert!(matches!(error, Error::Version { made_by: 8, .. }), "{error}");
}

#[tokio::test]
async fn a_lost_password_is_not_replaced() {
    let place = Place::new();
    let cluster = Cluster::start(&place.settings()).await.expect("start");
    cluster.stop(StopMode::Fast).await.expect("stop");
    fs::remove_file(cluster.directory().join("cogo.password")).expect("remove");
    let error = Cluster::start(&place.settings()).await.expect_err("no password");
    assert!(matches!(error, Error::PasswordMissing(_)), "{error}");
}

#[tokio::test]
async fn a_directory_with_other_content_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.cluster()).expect("create");
    fs::write(place.cluster().join("thesis.txt"), "years of work").expect("write");
    let before = fs::metadata(place.cluster()).expect("directory").permissions();
    let error = Cluster::start(&place.settings()).await.expect_err("not a cluster");
    assert!(matches!(error, Error::ForeignDirectory(_)), "{error}");
    assert_eq!(fs::metadata(place.cluster()).expect("directory").permissions(), before);
}
