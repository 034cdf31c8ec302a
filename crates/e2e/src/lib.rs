//! A whole fleet for a test: real processes, an embedded Postgres, a directory of its own.

mod fleet;
mod program;

pub use fleet::{Answer, Fleet};
pub use program::{Output, binaries_directory};
