//! The cluster that all test processes of a run share, and the script that removes it afterwards.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, ensure};
use cogo_pg_local::{Cluster, Durability, Settings, path_key};
use tokio::sync::OnceCell;

/// Plain text, so that it works wherever there is a POSIX shell.
const WATCHDOG: &str = include_str!("watchdog.sh");
const MAX_CONNECTIONS: &str = "300";

/// Where a run keeps its clusters, and the lock that says that the run goes on.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    directory: PathBuf,
}

impl Run {
    /// The run of this workspace and user.
    fn of_this_workspace() -> anyhow::Result<Self> {
        let workspace = path_key(Path::new(env!("CARGO_MANIFEST_DIR")));
        let user = rustix::process::geteuid().as_raw();
        let parent = std::env::temp_dir().canonicalize().context("find the temporary directory")?;
        Ok(Self { directory: parent.join(format!("cogo-test-{user}-{workspace}")) })
    }

    fn lock_path(&self) -> PathBuf {
        self.directory.with_extension("lock")
    }

    fn main_cluster(&self) -> PathBuf {
        self.directory.join("main")
    }

    /// A place for a cluster that one test owns; removed with the run if the test cannot do it.
    pub(crate) fn private_directory(&self, name: &str) -> PathBuf {
        self.directory.join(format!("private-{name}"))
    }

    /// Takes part in the run until the returned file is closed.
    fn join(&self) -> anyhow::Result<File> {
        let path = self.lock_path();
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.lock_shared()?;
            // The watchdog removes the file at the end of a run, so the lock may be on one that is gone.
            if fs::metadata(&path).is_ok_and(|found| Some(found.ino()) == file.metadata().ok().map(|own| own.ino())) {
                return Ok(file);
            }
        }
    }

    /// Starts the script that ends the run; a second one ends itself at once.
    fn watch(&self) -> anyhow::Result<()> {
        let status = Command::new("sh")
            .args(["-c", "sh -c \"$0\" cogo-test-watchdog \"$1\" \"$2\" &", WATCHDOG])
            .arg(&self.directory)
            .arg(self.lock_path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in the group that a terminal interrupts.
            .process_group(0)
            .status()
            .context("run sh")?;
        ensure!(status.success(), "the watchdog of the test cluster did not start");
        Ok(())
    }
}

/// Joins this workspace's run, once per process.
pub(crate) fn run() -> anyhow::Result<&'static Run> {
    static JOINED: OnceLock<(Run, File)> = OnceLock::new();
    if let Some((run, _)) = JOINED.get() {
        return Ok(run);
    }
    let run = Run::of_this_workspace()?;
    let lock = run.join().with_context(|| format!("lock {}", run.lock_path().display()))?;
    fs::create_dir_all(&run.directory).with_context(|| format!("create {}", run.directory.display()))?;
    run.watch()?;
    Ok(&JOINED.get_or_init(|| (run, lock)).0)
}

/// The cluster that all test processes share.
pub(crate) async fn shared_cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_try_init(|| async {
            let mut settings = Settings::new(run()?.main_cluster());
            settings.durability = Durability::Disposable;
            settings.extra.push(("max_connections".to_owned(), MAX_CONNECTIONS.to_owned()));
            Cluster::start(&settings).await.context("start the Postgres that tests use")
        })
        .await
}
