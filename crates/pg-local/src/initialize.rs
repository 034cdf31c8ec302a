//! Makes the data directory, all or nothing.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use crate::{Durability, Error, account::command, configuration, home::Home};

/// Name of the superuser that owns everything.
pub(crate) const SUPERUSER: &str = "cogo";
/// Sorting by code point everywhere; the second only where a system lacks the first.
const LOCALES: [&str; 2] = ["--locale=C.UTF-8", "--no-locale"];

/// Major version that made the data, if it was made.
pub(crate) fn made_by(home: &Home) -> Option<u32> {
    fs::read_to_string(home.data().join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Makes the data under another name first, so that a crash in between leaves nothing half made.
pub(crate) async fn make_data(home: &Home, bin_dir: &Path, durability: Durability) -> Result<(), Error> {
    let fresh = home.path().join("data.new");
    let mut outcome = Ok(());
    for locale in LOCALES {
        remove(&fresh)?;
        outcome = run_initdb(home, bin_dir, &fresh, locale, durability).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome?;
    let file = fresh.join("postgresql.conf");
    OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(configuration::INCLUDES.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(Error::file("write", file))?;
    home.write(&fresh.join("local.conf"), configuration::EMPTY_LOCAL)?;
    fs::rename(&fresh, home.data()).map_err(Error::file("rename", fresh))
}

async fn run_initdb(
    home: &Home,
    bin_dir: &Path,
    directory: &Path,
    locale: &str,
    durability: Durability,
) -> Result<(), Error> {
    let program = bin_dir.join("initdb");
    let mut initdb = command(&program, home.account());
    initdb
        .arg("--pgdata")
        .arg(directory)
        .args([
            "--username",
            SUPERUSER,
            "--auth-local=scram-sha-256",
            "--encoding=UTF8",
            "--text-search-config=english",
        ])
        .arg(locale)
        .arg(format!("--auth-host={}", authentication(durability)))
        .arg("--pwfile")
        .arg(home.password_file());
    if durability == Durability::Disposable {
        initdb.arg("--no-sync");
    }
    finish(program, initdb).await
}

/// How a client on 127.0.0.1 proves that it knows the password.
fn authentication(durability: Durability) -> &'static str {
    match durability {
        Durability::Durable => "scram-sha-256",
        // The thousands of hash rounds of scram take longer than a short test when its client is not optimised.
        Durability::Disposable => "password",
    }
}

/// Runs a program to its end; its last words become the error.
pub(crate) async fn finish(program: PathBuf, mut command: tokio::process::Command) -> Result<(), Error> {
    let output = command.output().await.map_err(|source| Error::Run { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Program { program, detail })
}

fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", directory)(error)),
        _ => Ok(()),
    }
}
