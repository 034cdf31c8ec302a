//! A database for one test.

use std::time::Duration;

use anyhow::Context;
use cogo_db::PoolSettings;
use sqlx::PgPool;

use crate::{detached::run_to_end, run::shared_cluster, template};

const MAX_CONNECTIONS: u32 = 10;
/// Longer than in production, since a test machine may be busy compiling.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// A database of its own for one test, removed when this value is dropped.
#[derive(Debug)]
pub struct TestDatabase {
    /// Ten connections at most, set up as in production. Belongs to the test's runtime: never share it between tests.
    pub pool: PgPool,
    /// Address for connections of one's own.
    pub url: String,
    name: String,
}

impl TestDatabase {
    /// Another pool on the same database, as a second process would have.
    ///
    /// # Panics
    /// When the address cannot be parsed, which would be a defect here.
    #[must_use]
    pub fn another_pool(&self) -> PgPool {
        connect(&self.url)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        run_to_end(async move { template::remove(shared_cluster().await?, &name).await });
    }
}

/// A migrated database.
///
/// # Panics
/// When Postgres is missing or a migration does not apply; the text says what to do.
pub async fn database() -> TestDatabase {
    open(Box::pin(template::migrated_copy()).await).await
}

/// A database without tables.
///
/// # Panics
/// When Postgres is missing; the text says what to do.
pub async fn empty_database() -> TestDatabase {
    let made = async { template::empty_copy(shared_cluster().await?).await };
    open(Box::pin(made).await).await
}

async fn open(name: anyhow::Result<String>) -> TestDatabase {
    let opened = async {
        let name = name?;
        let url = shared_cluster().await?.url(&name);
        anyhow::Ok(TestDatabase { pool: connect(&url), url, name })
    };
    match opened.await.context("make a test database") {
        Ok(database) => database,
        Err(error) => panic!("{error:#}"),
    }
}

/// A pool with the settings of production on any database.
pub(crate) fn connect(url: &str) -> PgPool {
    let settings = PoolSettings {
        max_connections: MAX_CONNECTIONS,
        acquire_timeout: ACQUIRE_TIMEOUT,
        ..PoolSettings::new(url, "test")
    };
    cogo_db::connect(&settings).expect("addresses of our own clusters are well formed")
}
