//! The databases that tests get.

mod database;
mod private;
