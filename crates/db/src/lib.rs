//! Pool, embedded migrations and the check that the database fits this build.

mod kept;
mod pool;
mod schema;

pub use kept::Kept;
pub use pool::{PoolSettings, TRUSTED_REST, connect};
pub use schema::{Error, MIGRATOR, SchemaState, migrate, schema_state};
