//! The database of a fleet: somebody else's, or the embedded one, which is watched and healed.

use std::time::Duration;

use cogo_db::SchemaState;
use cogo_pg_local::{Cluster, Healed, Settings, StopMode};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    context::{Context, DATABASE, open},
    failure::Failure,
    fleet::{DatabaseReference, write_private},
};

/// How often the embedded Postgres is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Applies what is missing; whoever may not do that runs a fleet all the same where nothing is missing.
async fn bring_up_to_date(url: &str) -> Result<(), Failure> {
    let pool = open(url).await?;
    let brought = migrate_or_check(&pool).await;
    pool.close().await;
    brought
}

async fn migrate_or_check(pool: &PgPool) -> Result<(), Failure> {
    let may_migrate: bool = sqlx::query_scalar(
        "select coalesce(has_table_privilege(to_regclass('public._sqlx_migrations'), 'insert'), true)",
    )
    .fetch_one(pool)
    .await?;
    if may_migrate {
        return Ok(cogo_db::migrate(pool).await?);
    }
    match cogo_db::schema_state(pool).await? {
        SchemaState::Fits(_) => Ok(()),
        SchemaState::Behind { have, need } => {
            Err(Failure::conflict(format!("The schema is at {have}, this build needs {need}"))
                .hint("run `cogo migrate` with the DATABASE_URL of the owner of the schema; this role may not"))
        }
    }
}

/// A migrated database that answers.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    url: String,
    reference: DatabaseReference,
    cluster: Option<Cluster>,
}

impl Database {
    /// The one that was given, else the embedded one of the directory; both are brought to this build's schema.
    pub(crate) async fn start(context: &Context) -> Result<Self, Failure> {
        let database = match &context.given_database_url {
            Some(url) => Self::external(context, url)?,
            None => Self::embedded(context).await?,
        };
        match Box::pin(bring_up_to_date(&database.url)).await {
            Ok(()) => Ok(database),
            Err(failure) => {
                // what was started for a fleet that does not come
                database.stop().await;
                Err(failure)
            }
        }
    }

    fn external(context: &Context, url: &str) -> Result<Self, Failure> {
        let url_file = context.home.database_url_file();
        write_private(&url_file, &format!("{url}\n"))?;
        Ok(Self { url: url.to_owned(), reference: DatabaseReference::External { url_file }, cluster: None })
    }

    async fn embedded(context: &Context) -> Result<Self, Failure> {
        let cluster = Box::pin(Cluster::start(&Settings::new(context.home.postgres()))).await?;
        cluster.create_database_if_missing(DATABASE).await?;
        Ok(Self {
            url: cluster.url(DATABASE),
            reference: DatabaseReference::Embedded { directory: cluster.directory().to_path_buf() },
            cluster: Some(cluster),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn reference(&self) -> DatabaseReference {
        self.reference.clone()
    }

    /// Starts the embedded Postgres again whenever it is gone, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let Some(cluster) = self.cluster else { return };
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            match stop.run_until_cancelled(cluster.ensure_running()).await {
                Some(Ok(Healed::Restarted)) => warn!("Postgres was gone and runs again"),
                Some(Err(failure)) => {
                    error!(error = crate::failure::chain(&failure), "Postgres is gone and does not start")
                }
                Some(Ok(Healed::NotNeeded)) | None => {}
            }
        }
    }

    /// Stops the embedded Postgres; somebody else's is left alone.
    pub(crate) async fn stop(self) {
        if let Some(cluster) = self.cluster
            && let Err(failure) = cluster.stop(StopMode::Fast).await
        {
            error!(error = crate::failure::chain(&failure), "Postgres did not stop");
        }
    }
}
