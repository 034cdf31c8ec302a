//! The Postgres of a chaos run: durable, its own, and killed on purpose.

use std::{path::Path, sync::Arc, time::Duration};

use cogo_db::PoolSettings;
use cogo_pg_local::{Cluster, Settings, StopMode};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{command::guard::PostgresGuard, context::DATABASE, failure::Failure};

/// How often it is looked after, as by `cogo up`.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The observer must notice soon that nobody answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running server with a migrated database.
#[derive(Debug, Clone)]
pub(crate) struct ChaosServer {
    cluster: Cluster,
    pub(crate) pool: PgPool,
    /// Ends it should this process be killed.
    _guard: Arc<PostgresGuard>,
}

impl ChaosServer {
    pub(crate) async fn start(directory: &Path) -> Result<Self, Failure> {
        // durable: without that a kill would lose what was acknowledged, and rightly so
        let settings = Settings::new(directory.join("postgres"));
        let guard = PostgresGuard::over(&settings.data_dir)?;
        let cluster = Box::pin(Cluster::start(&settings)).await?;
        let server = Self::prepare(cluster.clone(), guard).await;
        if server.is_err() {
            // nothing is in it yet
            let _ = remove(&cluster).await;
        }
        server
    }

    async fn prepare(cluster: Cluster, guard: PostgresGuard) -> Result<Self, Failure> {
        cluster.create_database_if_missing(DATABASE).await?;
        let url = cluster.url(DATABASE);
        let settings = PoolSettings { acquire_timeout: PATIENCE, ..PoolSettings::new(&url, "cogo-chaos") };
        let pool = cogo_db::connect(&settings)?;
        cogo_db::migrate(&pool).await?;
        // what handlers write together with their completion
        for statement in [
            "create schema chaos",
            "create table chaos.effects (
               message_id uuid not null, attempt smallint not null, holder text not null, owner text)",
        ] {
            sqlx::query(statement).execute(&pool).await?;
        }
        Ok(Self { cluster, pool, _guard: Arc::new(guard) })
    }

    pub(crate) fn url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    /// Starts it again whenever it is gone, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            // one that does not start now is tried again in a second; that nobody answers is what the observer sees
            let _ = self.cluster.ensure_running().await;
        }
    }

    /// `kill -9` of its first process.
    pub(crate) fn kill(&self) -> Result<(), Failure> {
        let pid = self.cluster.postmaster_pid().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::failed("Postgres does not run"))?;
        kill_process(pid, Signal::KILL).map_err(|error| Failure::failed("Kill Postgres").because(&error))
    }

    /// Ends it at once with all of its connections.
    pub(crate) async fn stop_at_once(&self) -> Result<(), Failure> {
        Ok(self.cluster.stop(StopMode::Immediate).await?)
    }

    /// Ends the connections that listen for notifications; answers how many.
    pub(crate) async fn cut_listeners(&self) -> Result<u64, Failure> {
        let cut = sqlx::query(
            "select pg_terminate_backend(a.pid) from pg_stat_activity a
              where a.datname = current_database() and a.query ilike 'listen %' and a.pid <> pg_backend_pid()",
        );
        Ok(cut.execute(&self.pool).await?.rows_affected())
    }

    /// Ends it and removes its data.
    pub(crate) async fn remove(self) -> Result<(), Failure> {
        self.pool.close().await;
        remove(&self.cluster).await
    }
}

async fn remove(cluster: &Cluster) -> Result<(), Failure> {
    // its data is thrown away, so there is nothing to save by a slow stop
    cluster.stop(StopMode::Immediate).await?;
    // not always the directory that was asked for
    Ok(std::fs::remove_dir_all(cluster.directory())?)
}
