//! A cluster: started, attached to, healed, stopped.

use std::{
    fmt, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    Error, Settings,
    account::command,
    binaries, configuration,
    home::Home,
    initialize::{self, SUPERUSER, finish},
    postmaster,
};

/// Crash recovery of a big cluster takes its time, in seconds.
const START_TIMEOUT_SECONDS: &str = "300";
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// A fast stop that hangs longer than this becomes an immediate one, in seconds.
const STOP_TIMEOUT_SECONDS: &str = "30";
/// Another program may take a free port between the look and the start.
const PORT_ATTEMPTS: usize = 5;
const POLL: Duration = Duration::from_millis(20);
/// The kernel takes a moment to end a process and to let go of its memory.
const REMAINS_TIMEOUT: Duration = Duration::from_secs(10);
const REMAINS_POLL: Duration = Duration::from_millis(100);
/// Enough of the log to hold the reason of a refused start, in bytes.
const LOG_TAIL: usize = 1500;
const DUPLICATE_DATABASE: &str = "42P04";
const UNIQUE_VIOLATION: &str = "23505";

/// A cluster that was running when this value was made.
#[derive(Clone)]
pub struct Cluster {
    home: Home,
    port: u16,
    bin_dir: PathBuf,
    password: String,
}

/// What the watchdog found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healed {
    /// Postgres was running.
    NotNeeded,
    /// Postgres was gone and runs again, on the same port.
    Restarted,
}

/// How Postgres stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends the sessions, writes everything, stops; becomes immediate after 30 s.
    Fast,
    /// Stops at once; the next start recovers from the log.
    Immediate,
}

impl Cluster {
    /// Starts the cluster of this directory, made if needed; attaches if it runs already.
    /// Safe to call from several processes at once.
    ///
    /// # Errors
    /// When Postgres is missing, the directory cannot be used, the port is taken or the server refuses to start.
    pub async fn start(settings: &Settings) -> Result<Self, Error> {
        settings.check()?;
        let home = Home::prepare(&settings.data_dir).await?;
        let _lock = home.lock().await?;
        if postmaster::living(&home.data()).is_some() {
            let cluster = Self::remembered(home.clone())?;
            if cluster.becomes_ready().await? {
                return Ok(cluster);
            }
        }
        let made_by = initialize::made_by(&home);
        let bin_dir = binaries::find(settings.bin_dir.as_deref(), made_by, home.account()).await?;
        let found = binaries::major_version(&bin_dir, home.account()).await?;
        if let Some(made_by) = made_by.filter(|made_by| *made_by != found) {
            return Err(Error::Version { path: home.data(), made_by, found });
        }
        let password = home.password()?;
        if made_by.is_none() {
            initialize::make_data(&home, &bin_dir, settings.durability).await?;
        }
        Self { home, port: 0, bin_dir, password }.launch_on_a_port(settings).await
    }

    /// The running cluster of this directory, if there is one.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn attach(data_dir: &Path) -> Result<Option<Self>, Error> {
        let Some(home) = Home::existing(data_dir)? else { return Ok(None) };
        if postmaster::living(&home.data()).is_none() {
            return Ok(None);
        }
        Self::remembered(home).map(Some)
    }

    /// Where the cluster really is; differs from the requested directory when that could not be reached.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// The file that the server logs to.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.home.log()
    }

    /// Directory of the programs that run the cluster.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of a database of this cluster. It carries the password, so it must not be logged.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Process number of the server, if it lives.
    #[must_use]
    pub fn postmaster_pid(&self) -> Option<i32> {
        postmaster::living(&self.home.data()).map(|postmaster| postmaster.pid.as_raw_nonzero().get())
    }

    /// Starts Postgres again if it is gone, on the same port; cheap if it is not. For a watchdog.
    ///
    /// # Errors
    /// When the server refuses to start.
    pub async fn ensure_running(&self) -> Result<Healed, Error> {
        if postmaster::living(&self.home.data()).is_some() {
            self.home.bound_log()?;
            return Ok(Healed::NotNeeded);
        }
        let _lock = self.home.lock().await?;
        if self.becomes_ready().await? {
            return Ok(Healed::NotNeeded);
        }
        self.launch().await?;
        Ok(Healed::Restarted)
    }

    /// Stops Postgres; a cluster that is not running counts as stopped.
    ///
    /// # Errors
    /// When the server cannot be told to stop.
    pub async fn stop(&self, mode: StopMode) -> Result<(), Error> {
        let _lock = self.home.lock().await?;
        if postmaster::living(&self.home.data()).is_none() {
            return Ok(());
        }
        if mode == StopMode::Fast {
            let Err(error) = self.stop_as("fast").await else { return Ok(()) };
            tracing::warn!(%error, "fast stop did not work, stopping at once");
        }
        let outcome = self.stop_as("immediate").await;
        if postmaster::living(&self.home.data()).is_none() { Ok(()) } else { outcome }
    }

    /// Makes a database unless it exists.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the name.
    pub async fn create_database_if_missing(&self, database: &str) -> Result<(), Error> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.map_err(Error::Database)?;
        let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(database)
            .fetch_one(&mut connection)
            .await
            .map_err(Error::Database)?;
        if !exists {
            let quoted = database.replace('"', "\"\"");
            let created =
                sqlx::query(AssertSqlSafe(format!("create database \"{quoted}\""))).execute(&mut connection).await;
            if let Err(error) = created
                && !is_made_meanwhile(&error)
            {
                return Err(Error::Database(error));
            }
        }
        connection.close().await.map_err(Error::Database)
    }

    /// Port and programs as the last start left them.
    fn remembered(home: Home) -> Result<Self, Error> {
        let path = home.state_file();
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let running_port = postmaster::living(&home.data()).and_then(|postmaster| postmaster.port);
        let port = running_port.or_else(|| value("port")?.parse().ok()).unwrap_or_default();
        let bin_dir = PathBuf::from(value("bin_dir").unwrap_or_default());
        let password = home.password()?;
        Ok(Self { home, port, bin_dir, password })
    }

    async fn launch_on_a_port(mut self, settings: &Settings) -> Result<Self, Error> {
        let mut outcome = Err(Error::PortTaken(0));
        for _ in 0..PORT_ATTEMPTS {
            self.port = self.choose_port(settings.port)?;
            let text = configuration::render(settings, self.port, &self.home.socket_directory());
            self.home.write(&self.home.data().join("cogo.conf"), &text)?;
            let state = format!("port={}\nbin_dir={}\n", self.port, self.bin_dir.display());
            self.home.write(&self.home.state_file(), &state)?;
            outcome = self.launch().await;
            if !matches!(outcome, Err(Error::PortTaken(_))) || settings.port.is_some() {
                break;
            }
        }
        outcome.map(|()| self)
    }

    /// The wanted port, else the one of the last start, else a free one.
    fn choose_port(&self, wanted: Option<u16>) -> Result<u16, Error> {
        if let Some(wanted) = wanted {
            return if is_free(wanted) { Ok(wanted) } else { Err(Error::PortTaken(wanted)) };
        }
        let last = fs::read_to_string(self.home.state_file())
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("port=")?.parse().ok()));
        if let Some(last) = last.filter(|port| *port != 0 && is_free(*port)) {
            return Ok(last);
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::file("find a free port on", "127.0.0.1"))?;
        listener.local_addr().map(|address| address.port()).map_err(Error::file("find a free port on", "127.0.0.1"))
    }

    /// Starts the server as configured, after the last session of a killed one has ended; the caller holds the lock.
    async fn launch(&self) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            match self.launch_once().await {
                Err(Error::Program { detail, .. })
                    if detail.contains("pre-existing shared memory block") && begin.elapsed() < REMAINS_TIMEOUT =>
                {
                    tokio::time::sleep(REMAINS_POLL).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn launch_once(&self) -> Result<(), Error> {
        let data = self.home.data();
        let socket_directory = self.home.make_socket_directory()?;
        postmaster::clear_remains(&data, &socket_directory)?;
        self.home.bound_log()?;
        let log_start = fs::metadata(self.home.log()).map_or(0, |metadata| metadata.len());
        let program = self.bin_dir.join("pg_ctl");
        let mut start = command(&program, self.home.account());
        start.args(["start", "--silent", "--wait", "--timeout", START_TIMEOUT_SECONDS, "--pgdata"]).arg(&data);
        start.arg("--log").arg(self.home.log());
        let Err(error) = finish(program.clone(), start).await else { return Ok(()) };
        if matches!(error, Error::Run { .. }) {
            return Err(error);
        }
        let detail = self.log_since(log_start);
        if detail.contains("Address already in use") {
            return Err(Error::PortTaken(self.port));
        }
        Err(Error::Program { program, detail: if detail.is_empty() { error.to_string() } else { detail } })
    }

    async fn stop_as(&self, mode: &str) -> Result<(), Error> {
        let program = self.bin_dir.join("pg_ctl");
        let mut stop = command(&program, self.home.account());
        stop.args(["stop", "--silent", "--wait", "--timeout", STOP_TIMEOUT_SECONDS, "--mode", mode, "--pgdata"]);
        stop.arg(self.home.data());
        finish(program, stop).await
    }

    /// Waits for a server that another process started; false when there is none, or it died on the way.
    async fn becomes_ready(&self) -> Result<bool, Error> {
        let ready = async {
            loop {
                match postmaster::living(&self.home.data()) {
                    None => return false,
                    Some(postmaster) if postmaster.accepts_connections => return true,
                    Some(_starting) => tokio::time::sleep(POLL).await,
                }
            }
        };
        tokio::time::timeout(READY_TIMEOUT, ready).await.map_err(|_elapsed| Error::NotReady(self.home.log()))
    }

    fn log_since(&self, start: u64) -> String {
        let bytes = fs::read(self.home.log()).unwrap_or_default();
        let fresh = bytes.get(usize::try_from(start).unwrap_or(0)..).unwrap_or_default();
        let tail = &fresh[fresh.len().saturating_sub(LOG_TAIL)..];
        String::from_utf8_lossy(tail).trim().to_owned()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("directory", &self.home.path())
            .field("port", &self.port)
            .field("bin_dir", &self.bin_dir)
            .finish_non_exhaustive()
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn is_made_meanwhile(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == DUPLICATE_DATABASE || code == UNIQUE_VIOLATION)
}
