//! Nothing that a command started for itself outlives it, not even `kill -9`.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Cogo, eventually};

/// The number of the Postgres whose directory lies somewhere below this one, once it runs.
fn postmaster(directory: PathBuf) -> Option<u32> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let mut directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.find_map(|path| match fs::read_to_string(path.join("postmaster.pid")) {
        // its last line says how far it is
        Ok(text) if text.contains("ready") => text.lines().next()?.parse().ok(),
        _ => postmaster(path),
    })
}

fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// Kills the command once its Postgres runs, which must end then.
async fn killed(arguments: &[&str]) {
    let cogo = Cogo::without_database();
    // the account that runs Postgres must reach it
    fs::set_permissions(cogo.data_dir().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = cogo.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let mut server = None;
    eventually("its Postgres runs", async || {
        server = postmaster(cogo.data_dir());
        server.is_some()
    })
    .await;
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    child.wait().await.unwrap();
    eventually("its Postgres is gone", async || server.is_some_and(is_gone)).await;
    eventually("its data is gone", async || postmaster(cogo.data_dir()).is_none() && !has_data(cogo.data_dir())).await;
}

fn has_data(directory: PathBuf) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut directories = entries.filter(|path| path.is_dir());
    directories.any(|path| path.join("PG_VERSION").exists() || has_data(path))
}

#[tokio::test]
async fn killed_chaos_run_leaves_no_postgres_behind() {
    killed(&["chaos", "--seed", "1", "--workers", "4"]).await;
}

#[tokio::test]
async fn killed_bench_leaves_no_postgres_behind() {
    killed(&["bench", "bus"]).await;
}

#[tokio::test]
async fn guard_of_nobody_removes_nothing() {
    let cogo = Cogo::without_database();
    let directory = cogo.file("letter.txt", "dear").parent().unwrap().to_owned();
    let refused = cogo.run_with_input(&["guard", directory.to_str().unwrap()], "").await.expect(4);
    assert!(refused.stderr.contains("Nobody owns"), "{refused:?}");
    assert!(directory.join("letter.txt").exists());
}
