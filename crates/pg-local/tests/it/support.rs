//! A cluster in a temporary directory that is gone after the test, also when it fails.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cogo_pg_local::{Cluster, Settings};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

/// A directory that the account of Postgres can reach, and whatever runs in it until the end.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        Self { directory }
    }

    pub(crate) fn cluster(&self) -> PathBuf {
        self.directory.path().join("cluster")
    }

    /// Small, so that many can start at once.
    pub(crate) fn settings(&self) -> Settings {
        small(&self.cluster())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        end(&self.cluster());
    }
}

/// Settings of a cluster that starts quickly and keeps its data.
pub(crate) fn small(directory: &Path) -> Settings {
    let mut settings = Settings::new(directory);
    for (name, value) in [("shared_buffers", "16MB"), ("max_connections", "20")] {
        settings.extra.push((name.to_owned(), value.to_owned()));
    }
    settings
}

/// Kills what still runs in the directory of a cluster and removes it.
pub(crate) fn end(directory: &Path) {
    if let Ok(Some(cluster)) = Cluster::attach(directory) {
        if let Some(pid) = cluster.postmaster_pid() {
            signal("-QUIT", pid);
            while cluster.postmaster_pid().is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        fs::remove_dir_all(cluster.directory()).expect("remove the cluster");
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(name: &str, pid: i32) {
    let status = Command::new("kill").arg(name).arg(pid.to_string()).status().expect("kill runs");
    assert!(status.success(), "kill {name} {pid}");
}

pub(crate) async fn connect(cluster: &Cluster) -> PgConnection {
    PgConnection::connect(&cluster.url("postgres")).await.expect("connection")
}

/// Makes a table with one committed row.
pub(crate) async fn keep_a_row(cluster: &Cluster) {
    let mut connection = connect(cluster).await;
    sqlx::query("create table public.kept (id bigint)").execute(&mut connection).await.expect("table");
    sqlx::query("insert into public.kept (id) values (7)").execute(&mut connection).await.expect("row");
}

pub(crate) async fn kept_row(cluster: &Cluster) -> i64 {
    let mut connection = connect(cluster).await;
    sqlx::query_scalar("select id from public.kept").fetch_one(&mut connection).await.expect("kept row")
}
