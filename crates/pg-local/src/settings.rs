//! What the caller decides about a cluster.

use std::path::PathBuf;

use crate::Error;

/// What the caller decides about a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the cluster; made if missing, and handed to the account that runs Postgres.
    pub data_dir: PathBuf,
    /// TCP port on 127.0.0.1; `None` takes a free one and keeps it over restarts.
    pub port: Option<u16>,
    /// Where `initdb`, `pg_ctl` and `postgres` are; `None` searches, then downloads.
    pub bin_dir: Option<PathBuf>,
    /// Whether the data must survive a crash of the machine.
    pub durability: Durability,
    /// Further settings of Postgres by name; they win over COGO's.
    pub extra: Vec<(String, String)>,
}

/// Whether the data must survive a crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// An acknowledged commit survives.
    Durable,
    /// Faster, for tests: only a crash of Postgres itself is survived.
    Disposable,
}

impl Settings {
    /// A durable cluster in this directory, on a free port, from the programs that are found.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: None,
            bin_dir: None,
            durability: Durability::Durable,
            extra: Vec::new(),
        }
    }

    /// Names end up unquoted in a configuration file, so nothing else may pass.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (name, value) in &self.extra {
            let valid_name =
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            if !valid_name || value.contains(['\n', '\r', '\0']) {
                return Err(Error::SettingName(name.clone()));
            }
        }
        Ok(())
    }
}
