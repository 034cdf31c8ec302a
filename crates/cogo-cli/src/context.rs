//! What every command works with: the output, the directory of the fleet and the way to its database.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use cogo_bus_core::Bus;
use cogo_db::{PoolSettings, SchemaState};
use cogo_pg_local::Cluster;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    arguments::Global,
    database_failure::ADDRESS_EXAMPLE,
    failure::{Failure, Kind, about_file},
    fleet::{DatabaseReference, Home},
    output::Output,
};

/// Name of the database in the embedded cluster.
pub(crate) const DATABASE: &str = "cogo";
/// A person waits; a server that is there answers at once.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) output: Output,
    pub(crate) home: Home,
    /// The address that was given by flag or environment, which wins over everything.
    pub(crate) given_database_url: Option<String>,
    sent: OnceLock<Uuid>,
}

impl Context {
    pub(crate) fn new(output: Output, global: &Global) -> Self {
        let given = global.database_url.clone().filter(|url| !url.trim().is_empty());
        Self { output, home: Home::new(&global.data_dir), given_database_url: given, sent: OnceLock::new() }
    }

    /// Notes what was sent: whoever breaks off or waits too long is told, since it goes on.
    pub(crate) fn note_sent(&self, id: Uuid) {
        // the first is what the command was called for
        let _ = self.sent.set(id);
    }

    /// What was sent, if anything.
    pub(crate) fn sent(&self) -> Option<Uuid> {
        self.sent.get().copied()
    }

    /// Address of the database: as given, else that of the fleet of this directory, else of its embedded Postgres.
    pub(crate) fn database_url(&self) -> Result<String, Failure> {
        if let Some(url) = &self.given_database_url {
            return Ok(url.clone());
        }
        if let Some(state) = self.home.read_state()?
            && let DatabaseReference::External { url_file } = &state.database
        {
            let url = std::fs::read_to_string(url_file).map_err(about_file("read", url_file))?;
            return Ok(url.trim().to_owned());
        }
        match Cluster::attach(&self.home.postgres())? {
            Some(cluster) => Ok(cluster.url(DATABASE)),
            None => Err(Failure::unavailable(format!("No database runs in {}", self.home.path().display()))
                .hint("start the fleet with `cogo up`, or set DATABASE_URL")),
        }
    }

    /// Connections to a database that answers.
    pub(crate) async fn pool(&self) -> Result<PgPool, Failure> {
        open(&self.database_url()?).await
    }

    /// The bus of a database whose schema is there.
    pub(crate) async fn bus(&self) -> Result<Bus, Failure> {
        let pool = self.pool().await?;
        match cogo_db::schema_state(&pool).await? {
            SchemaState::Fits(_) => Ok(Bus::new(pool)),
            SchemaState::Behind { have, need } => {
                Err(Failure::conflict(format!("The schema is at {have}, this build needs {need}"))
                    .hint("run `cogo migrate`"))
            }
        }
    }

    /// A directory or file that was named, as other processes would have to name it.
    pub(crate) fn absolute(path: &std::path::Path) -> Result<PathBuf, Failure> {
        path.canonicalize().map_err(|error| {
            let failure = Failure::not_found(format!("There is no {}", path.display()));
            if error.kind() == std::io::ErrorKind::NotFound { failure } else { failure.because(&error) }
        })
    }
}

/// Connections to this address, the first of which is made at once.
pub(crate) async fn open(url: &str) -> Result<PgPool, Failure> {
    // sqlx would take any scheme for its own
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Failure::new(Kind::Usage, "DATABASE_URL is not an address of Postgres")
            .cause("it begins with neither postgres:// nor postgresql://")
            .hint(ADDRESS_EXAMPLE));
    }
    let settings =
        PoolSettings { max_connections: 4, acquire_timeout: CONNECT_PATIENCE, ..PoolSettings::new(url, "cogo-cli") };
    let pool = cogo_db::connect(&settings).map_err(|error| {
        Failure::new(Kind::Usage, "DATABASE_URL cannot be used").because(&error).hint(ADDRESS_EXAMPLE)
    })?;
    // a pool would only say that it waited in vain, a connection says why
    let options = pool.connect_options();
    let probe = PgConnection::connect_with(&options);
    match tokio::time::timeout(CONNECT_PATIENCE, probe).await {
        Ok(Ok(connection)) => {
            connection.close().await?;
            Ok(pool)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => {
            Err(Failure::unavailable(format!("The database did not answer within {} s", CONNECT_PATIENCE.as_secs()))
                .hint("check DATABASE_URL"))
        }
    }
}
