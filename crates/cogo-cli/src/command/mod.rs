//! One file for each command.

pub(crate) mod agents;
pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod bench_ask;
pub(crate) mod bench_idle;
pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod doctor_database;
pub(crate) mod doctor_machine;
pub(crate) mod down;
pub(crate) mod index;
pub(crate) mod launch;
pub(crate) mod migrate;
pub(crate) mod send;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod trace;
pub(crate) mod up;
pub(crate) mod up_background;
pub(crate) mod up_database;
pub(crate) mod up_fleet;
pub(crate) mod up_table;
pub(crate) mod version;
