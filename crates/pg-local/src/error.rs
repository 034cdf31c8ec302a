//! Why a private Postgres could not be used, each with the next step.

use std::{io, path::PathBuf};

/// Why a private Postgres could not be prepared, started, asked or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the cluster could not be used.
    #[error("Could not {action} {}", path.display())]
    File {
        /// What was tried, such as "create".
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The directory that was named as the one of the programs does not hold them.
    #[error("No Postgres programs (initdb, pg_ctl, postgres) in {}; name the directory that holds them, e.g. the output of `pg_config --bindir`", .0.display())]
    NoProgramsIn(PathBuf),
    /// Nothing is installed and the download did not succeed.
    #[error(
        "Postgres is not installed and could not be downloaded; install it, e.g. `apt-get install postgresql` or `brew install postgresql`, or set DATABASE_URL to a running one"
    )]
    Download(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The programs found cannot read the data directory.
    #[error("{} was made by Postgres {made_by}, but only version {found} was found; install version {made_by} or move the directory away", path.display())]
    Version {
        /// The data directory.
        path: PathBuf,
        /// Major version that made the directory.
        made_by: u32,
        /// Major version of the programs.
        found: u32,
    },
    /// The directory holds something else.
    #[error("{} is not empty and not a cluster of COGO; name an empty or a new directory", .0.display())]
    ForeignDirectory(PathBuf),
    /// There is no account to drop to from root.
    #[error(
        "Postgres refuses to run as root and no account `postgres` or `nobody` exists; create one, e.g. `useradd --system postgres`"
    )]
    NoAccount,
    /// The data exists, but its password is gone.
    #[error("{} is missing although the data exists; restore it or remove the cluster's directory", .0.display())]
    PasswordMissing(PathBuf),
    /// Something else listens on the port.
    #[error("Port {0} is taken by another program; stop that program or choose another port")]
    PortTaken(u16),
    /// A setting's name is not one that Postgres can have.
    #[error("`{0}` is not the name of a Postgres setting")]
    SettingName(String),
    /// One of Postgres' programs could not be run at all.
    #[error("Could not run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// One of Postgres' programs ended with an error.
    #[error("{} ended with an error: {detail}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Its last words, or those of the server's log.
        detail: String,
    },
    /// Another process has been starting or stopping this cluster for too long.
    #[error("Another process holds {} for too long; end that process", .0.display())]
    Locked(PathBuf),
    /// The server runs, but does not accept connections.
    #[error("Postgres runs but does not accept connections; see {}", .0.display())]
    NotReady(PathBuf),
    /// The server did not do what it was asked for over a connection.
    #[error("Postgres did not answer as expected")]
    Database(#[source] sqlx::Error),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
