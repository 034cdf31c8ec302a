//! Databases for tests: one throw-away cluster per run, a database of its own for each test.
//!
//! Nothing needs to run before `cargo test` and nothing is left running after it: the first test process starts the
//! cluster below the system's temporary directory, every process that uses it holds a shared lock for its life, and a
//! small detached script removes the cluster once nobody has held that lock for about twenty seconds.

mod database;
mod detached;
mod ports;
mod private;
mod run;
mod template;

pub use database::{TestDatabase, database, empty_database};
pub use ports::{FREE_PORTS, free_port};
pub use private::{PrivateCluster, private_cluster};
