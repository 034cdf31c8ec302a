//! A cluster for one test that kills Postgres.

use std::{fs, time::Duration};

use anyhow::Context;
use cogo_pg_local::{Cluster, Healed, Settings, StopMode};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{database::connect, detached::run_to_end, run::run, template};

/// Name of the migrated database in a private cluster.
const DATABASE: &str = "cogo";
/// A test needs few, and a small cluster starts sooner.
const SMALL: [(&str, &str); 2] = [("max_connections", "60"), ("shared_buffers", "32MB")];

/// A durable cluster of its own; stopped and removed when this value is dropped.
#[derive(Debug)]
pub struct PrivateCluster {
    /// Ten connections at most to a migrated database.
    pub pool: PgPool,
    /// Address of that database; it stays the same over crashes.
    pub url: String,
    /// The cluster itself.
    pub cluster: Cluster,
}

impl PrivateCluster {
    /// Another pool on the same database, as a second process would have.
    ///
    /// # Panics
    /// When the address cannot be parsed, which would be a defect here.
    #[must_use]
    pub fn another_pool(&self) -> PgPool {
        connect(&self.url)
    }

    /// Kills the server at once, as `kill -9` or the kernel would.
    ///
    /// # Panics
    /// When the server was not running.
    pub fn kill(&self) {
        let pid = self.cluster.postmaster_pid().expect("the private cluster runs before it is killed");
        let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -9 {pid} did not work");
        while self.cluster.postmaster_pid() == Some(pid) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the server again if it is gone.
    ///
    /// # Panics
    /// When the server does not come back.
    pub async fn heal(&self) -> Healed {
        match Box::pin(self.cluster.ensure_running()).await.context("restart the private cluster") {
            Ok(healed) => healed,
            Err(error) => panic!("{error:#}"),
        }
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        let cluster = self.cluster.clone();
        run_to_end(async move {
            cluster.stop(StopMode::Immediate).await?;
            fs::remove_dir_all(cluster.directory()).context("remove the private cluster")
        });
    }
}

/// A cluster of its own with a migrated database, for a test that kills Postgres; takes a few seconds.
///
/// # Panics
/// When Postgres is missing or a migration does not apply; the text says what to do.
pub async fn private_cluster() -> PrivateCluster {
    match Box::pin(start()).await.context("start a private cluster") {
        Ok(cluster) => cluster,
        Err(error) => panic!("{error:#}"),
    }
}

async fn start() -> anyhow::Result<PrivateCluster> {
    let mut settings = Settings::new(run()?.private_directory(&Uuid::now_v7().simple().to_string()));
    settings.extra = SMALL.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::start(&settings).await?;
    let url = cluster.url(DATABASE);
    let private = PrivateCluster { pool: connect(&url), url, cluster };
    private.cluster.create_database_if_missing(DATABASE).await?;
    template::migrate(&private.url).await?;
    Ok(private)
}
