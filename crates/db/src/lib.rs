//! Pool, embedded migrations and the check that the database fits this build.

mod pool;
mod schema;

pub use pool::{PoolSettings, connect};
pub use schema::{Error, MIGRATOR, SchemaState, migrate, schema_state};
