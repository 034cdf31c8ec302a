//! A durable Postgres of its own that may be killed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use cogo_db::PoolSettings;
use cogo_pg_local::{Cluster, Settings, StopMode};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;

const DATABASE: &str = "cogo";
const EXTRA: [(&str, &str); 2] = [("max_connections", "120"), ("shared_buffers", "256MB")];
const POLL: Duration = Duration::from_millis(20);
/// Recovery after a kill takes longer than this only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server with a migrated database.
pub(super) struct Server {
    cluster: Cluster,
    pub(super) url: String,
    pub(super) pool: PgPool,
}

impl Server {
    pub(super) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let mut settings = Settings::new(directory.join("cluster"));
        settings.extra = EXTRA.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let cluster = Cluster::start(&settings).await.context("start Postgres")?;
        cluster.create_database_if_missing(DATABASE).await.context("make the database")?;
        let url = cluster.url(DATABASE);
        let pool = cogo_db::connect(&PoolSettings::new(&url, "storm")).context("read the address")?;
        cogo_db::migrate(&pool).await.context("migrate")?;
        Ok(Self { cluster, url, pool })
    }

    /// Kills it and brings it back; answers for how long it did not answer.
    pub(super) async fn crash(&self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let pid = self.cluster.postmaster_pid().and_then(Pid::from_raw).context("find the server")?;
        kill_process(pid, Signal::KILL).context("kill the server")?;
        while self.cluster.postmaster_pid() == Some(pid.as_raw_nonzero().get()) {
            tokio::time::sleep(POLL).await;
        }
        self.cluster.ensure_running().await.context("restart the server")?;
        while sqlx::query("select 1").execute(&self.pool).await.is_err() {
            anyhow::ensure!(begin.elapsed() < PATIENCE, "the server does not come back");
            tokio::time::sleep(POLL).await;
        }
        Ok(begin.elapsed())
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.pool.close().await;
        let directory = self.cluster.directory().to_path_buf();
        self.cluster.stop(StopMode::Immediate).await.context("stop the server")?;
        // where it really was, which may be elsewhere than it was asked to be
        std::fs::remove_dir_all(directory).context("remove the cluster")
    }
}
