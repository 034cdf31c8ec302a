//! Reads the workspace for the tests in `tests/`, which hold the rules that the design sets for it.

mod rust_source;
mod sql_source;
mod workspace;

pub use rust_source::{Literal, RustSource, without_test_items};
pub use sql_source::{Column, Migration, written_tables};
pub use workspace::{Kind, Member, members, migrations_directory, read, root, text_files};
