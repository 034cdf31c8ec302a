//! The embedded default: a private Postgres, started, stopped and healed after a crash.
//!
//! The directory of a cluster holds:
//! - `data/`: what `initdb` made; `data/cogo.conf` is rewritten at every start, own settings go to `data/local.conf`.
//! - `cogo.password`: the random password of the superuser `cogo`, readable by its owner only.
//! - `cluster.state`: port and programs of the last start; `cluster.lock`: held while starting and stopping.
//! - `postgres.log` and `postgres.log.1`: 16 MiB at most each, give or take what is logged between two checks.
//! - `moved-to`: only when the account that runs Postgres cannot reach this directory; it names the real one.
//!
//! Postgres listens on 127.0.0.1 and on a socket that only its account can open; both ask for the password
//! (by SCRAM; a disposable cluster takes it in clear text over loopback, which is cheaper for short tests).

mod account;
mod binaries;
mod cluster;
mod configuration;
mod error;
mod home;
mod initialize;
mod postmaster;
mod settings;

pub use cluster::{Cluster, Healed, StopMode};
pub use error::Error;
pub use home::path_key;
pub use settings::{Durability, Settings};
