//! The built programs, and running one to its end.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use serde_json::Value;

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Fails the test unless the program ended well.
    ///
    /// # Errors
    /// With everything that it printed.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(self.code == Some(0), "exit {:?}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        Ok(self)
    }

    /// Standard output as one JSON value.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("read {:?}", self.stdout))
    }
}

/// Where cargo put the programs of this build, beside the directory of the test binary.
///
/// # Errors
/// When `cogo` is not there: it has to be built before.
pub fn binaries_directory() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("find the test binary")?;
    let directory = test.parent().and_then(Path::parent).context("find the target directory")?;
    ensure!(directory.join("cogo").exists(), "cogo is not built; run `cargo build --workspace --bins` before");
    Ok(directory.to_path_buf())
}

pub(crate) fn run(program: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("DATABASE_URL")
        // the trees of the tests lie anywhere
        .env("COGO_ALLOWED_ROOTS", "/")
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
