//! Where the bus is measured: a database of its own, on a server that is there or on one started for the purpose.

use std::{future::Future, path::PathBuf};

use cogo_db::PoolSettings;
use cogo_pg_local::{Cluster, Settings, StopMode};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::runtime::Builder;
use uuid::Uuid;

use crate::{
    command::guard::PostgresGuard,
    context::{Context, DATABASE},
    failure::{Failure, Kind},
};

/// What a server that exists for the measurement is given; a durable one waits for its disk at each commit.
const SERVER_SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "512MB"), ("max_wal_size", "4GB"), ("checkpoint_timeout", "15min")];
/// Ids that one statement brings to the server.
const IDS_PER_STATEMENT: usize = 100_000;

/// The server that is measured.
pub(crate) struct BenchServer {
    url: String,
    own: Option<OwnCluster>,
}

/// What the figures depend on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServerSettings {
    pub(crate) version: String,
    pub(crate) shared_buffers: String,
    /// Whether a commit waits for the disk.
    pub(crate) durable: bool,
}

impl BenchServer {
    /// The server of `DATABASE_URL` or of the fleet, else a durable one of its own.
    pub(crate) async fn find_or_start(context: &Context) -> Result<Self, Failure> {
        match context.database_url() {
            Ok(url) => Ok(Self { url, own: None }),
            Err(nothing_runs) if nothing_runs.kind == Kind::Unavailable => {
                context.output.note("no database runs: starting a Postgres for the measurement");
                // under the directory of the fleet: a directory for temporary files may be memory
                let directory = context.home.path().join(format!("bench-{}", std::process::id()));
                let mut settings = Settings::new(&directory);
                settings.extra.extend(SERVER_SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())));
                let guard = PostgresGuard::over(&directory)?;
                let mut own = OwnCluster { cluster: None, directory, _guard: guard };
                let cluster = own.cluster.insert(Box::pin(Cluster::start(&settings)).await?);
                cluster.create_database_if_missing(DATABASE).await?;
                let url = cluster.url(DATABASE);
                Ok(Self { url, own: Some(own) })
            }
            Err(failure) => Err(failure),
        }
    }

    pub(crate) async fn settings(&self) -> Result<ServerSettings, Failure> {
        let mut connection = self.connect().await?;
        let (version, shared_buffers, durable) = sqlx::query_as(
            "select current_setting('server_version'), current_setting('shared_buffers'),
                    current_setting('fsync') = 'on' and current_setting('synchronous_commit') <> 'off'",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(ServerSettings { version, shared_buffers, durable })
    }

    /// A fresh database with this build's schema.
    pub(crate) async fn create_database(&self) -> Result<OwnDatabase, Failure> {
        self.create_database_for("").await
    }

    /// The same with a word in its name that tells it from others of this process: letters, digits, underscores.
    pub(crate) async fn create_database_for(&self, purpose: &str) -> Result<OwnDatabase, Failure> {
        let name = format!("cogo_bench_{}{purpose}", std::process::id());
        let mut connection = self.connect().await?;
        for statement in [drop_statement(&name), format!("create database {name}")] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        let database = OwnDatabase { url: with_database(&self.url, &name)?, admin_url: self.url.clone(), name };
        let pool = cogo_db::connect(&PoolSettings::new(&database.url, "cogo-bench"))?;
        cogo_db::migrate(&pool).await?;
        pool.close().await;
        // what others have written is to weigh on nothing that is measured; who may not ask for it measures with it
        let _ = sqlx::query("checkpoint").execute(&mut connection).await;
        Ok(database)
    }

    /// Address of another database of this server.
    pub(crate) fn url_of(&self, name: &str) -> Result<String, Failure> {
        with_database(&self.url, name)
    }

    pub(crate) async fn has(&self, name: &str) -> Result<bool, Failure> {
        let exists = sqlx::query_scalar("select exists (select from pg_database where datname = $1)").bind(name);
        Ok(exists.fetch_one(&mut self.connect().await?).await?)
    }

    /// A database that somebody else makes, removed with the value if it is there; the name needs no quotes.
    pub(crate) fn adopt(&self, name: &str) -> Result<OwnDatabase, Failure> {
        Ok(OwnDatabase { url: self.url_of(name)?, admin_url: self.url.clone(), name: name.to_owned() })
    }

    /// Ends a server of its own; another one stays as it is.
    pub(crate) async fn close(self) {
        if let Some(own) = self.own {
            own.remove().await;
        }
    }

    pub(crate) async fn connect(&self) -> Result<PgConnection, Failure> {
        Ok(PgConnection::connect(&self.url).await?)
    }
}

/// A cluster that goes with the measurement.
struct OwnCluster {
    cluster: Option<Cluster>,
    directory: PathBuf,
    /// Ends it should this process be killed; goes last, once there is nothing left.
    _guard: PostgresGuard,
}

impl OwnCluster {
    async fn remove(mut self) {
        if let Some(cluster) = self.cluster.take() {
            end(cluster).await;
        }
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            finish_elsewhere(end(cluster));
        }
        // there is nothing when the start came to nothing, and nothing more to do when it stays
        let _ = std::fs::remove_dir_all(&self.directory);
        // a directory of a fleet that was made for this alone is empty now, any other one is not
        if let Some(parent) = self.directory.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

async fn end(cluster: Cluster) {
    // its data is thrown away, so there is nothing to save by a slow stop
    let _ = cluster.stop(StopMode::Immediate).await;
    // not always the directory that was asked for
    let _ = std::fs::remove_dir_all(cluster.directory());
}

/// A database that is removed when this value goes, also when the command is interrupted.
pub(crate) struct OwnDatabase {
    url: String,
    admin_url: String,
    name: String,
}

impl OwnDatabase {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn remove(mut self) -> Result<(), Failure> {
        let name = std::mem::take(&mut self.name);
        drop_database(&self.admin_url, &name).await
    }
}

impl Drop for OwnDatabase {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        if !name.is_empty() {
            let admin_url = self.admin_url.clone();
            finish_elsewhere(async move { drop(drop_database(&admin_url, &name).await) });
        }
    }
}

async fn drop_database(admin_url: &str, name: &str) -> Result<(), Failure> {
    let mut connection = PgConnection::connect(admin_url).await?;
    sqlx::query(AssertSqlSafe(drop_statement(name))).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// The name is made here of letters and digits, so it needs no quotes.
fn drop_statement(name: &str) -> String {
    format!("drop database if exists {name} with (force)")
}

/// Waits for work while a value is dropped, where nothing can be awaited.
fn finish_elsewhere(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Ok(runtime) = Builder::new_current_thread().enable_all().build() {
            runtime.block_on(work);
        }
    });
    // it cannot be told from here what went wrong
    let _ = thread.join();
}

fn with_database(url: &str, name: &str) -> Result<String, Failure> {
    // checked as an address of Postgres first, so that the path below is the name of its database
    url.parse::<PgConnectOptions>()?;
    let mut address = reqwest::Url::parse(url)
        .map_err(|error| Failure::failed("DATABASE_URL is not an address of Postgres").because(&error))?;
    address.set_path(name);
    Ok(address.into())
}

/// Bytes of the table of messages.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(crate) struct Size {
    pub(crate) table: f64,
    pub(crate) indexes: f64,
}

/// What became of everything that was sent, by the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Account {
    pub(crate) sent: i64,
    /// Sent, but not done or its completion was never acknowledged.
    pub(crate) lost: i64,
    /// Completions beyond the first, second claims (nothing fails here), and messages that nobody sent.
    pub(crate) duplicated: i64,
}

/// The measured database, from the side of the client threads.
pub(crate) struct BenchDatabase {
    pool: PgPool,
}

impl BenchDatabase {
    pub(crate) async fn open(url: &str, connections: u32) -> Result<Self, Failure> {
        // production's pool, so that what it costs is measured too
        let settings = PoolSettings { max_connections: connections, ..PoolSettings::new(url, "cogo-bench") };
        let pool = cogo_db::connect(&settings)?;
        for statement in [
            "create schema bench",
            "create table bench.sent (id uuid not null)",
            "create table bench.acknowledged (id uuid not null)",
        ] {
            sqlx::query(statement).execute(&pool).await?;
        }
        Ok(Self { pool })
    }

    pub(crate) fn pool(&self) -> PgPool {
        self.pool.clone()
    }

    pub(crate) async fn close(self) {
        self.pool.close().await;
    }

    /// Bytes of write-ahead log since the server was made; all databases of the server share it.
    pub(crate) async fn wal_position(&self) -> Result<f64, Failure> {
        let position = sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8");
        Ok(position.fetch_one(&self.pool).await?)
    }

    pub(crate) async fn size_of_messages(&self) -> Result<Size, Failure> {
        let size = sqlx::query_as(
            "select sum(pg_table_size(part.relid))::float8 as table, sum(pg_indexes_size(part.relid))::float8 as indexes
               from (select relid from pg_partition_tree('public.agent_messages')
                     union all select unnest(array['bus.ready', 'bus.claims']::regclass[])) as part",
        );
        Ok(size.fetch_one(&self.pool).await?)
    }

    pub(crate) async fn account(&self, sent: &[Uuid], acknowledged: &[Uuid]) -> Result<Account, Failure> {
        for (statement, ids) in [
            ("insert into bench.sent (id) select unnest($1::uuid[])", sent),
            ("insert into bench.acknowledged (id) select unnest($1::uuid[])", acknowledged),
        ] {
            for part in ids.chunks(IDS_PER_STATEMENT) {
                sqlx::query(statement).bind(part).execute(&self.pool).await?;
            }
        }
        // the planner knows nothing of tables that were just filled
        sqlx::query("analyze bench.sent, bench.acknowledged, public.agent_messages").execute(&self.pool).await?;
        let account = sqlx::query_as(
            "select (select count(*) from bench.sent) as sent,
                    (select count(*)
                       from bench.sent s
                       left join public.agent_messages m on m.id = s.id and m.status = 'done'
                       left join (select distinct id from bench.acknowledged) a on a.id = s.id
                      where m.id is null or a.id is null) as lost,
                    (select count(*) - count(distinct a.id) from bench.acknowledged a)
                      + (select count(*)
                           from public.agent_messages m left join bench.sent s on s.id = m.id
                          where m.attempts > 1 or s.id is null) as duplicated",
        );
        Ok(account.fetch_one(&self.pool).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_the_database_changes() {
        let address = with_database("postgres://me:secret@host:5433/fleet?sslmode=disable", "cogo_bench_7");
        assert_eq!(address.as_deref(), Ok("postgres://me:secret@host:5433/cogo_bench_7?sslmode=disable"));
        assert!(with_database("not an address", "x").is_err());
    }

    #[tokio::test]
    async fn the_account_sees_lost_doubled_and_unknown_messages() {
        let database = cogo_test_support::database().await;
        let bench = BenchDatabase::open(&database.url, 2).await.expect("a database");
        let unknown: Uuid = sqlx::query_scalar("select bus.enqueue('a', 'b', 'default', '{}')")
            .fetch_one(&database.pool)
            .await
            .expect("a message");
        let never_arrived = Uuid::now_v7();
        let account = bench.account(&[never_arrived], &[unknown, unknown]).await.expect("an account");
        assert_eq!(account, Account { sent: 1, lost: 1, duplicated: 2 });
    }
}
