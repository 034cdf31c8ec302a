//! The fleet of one directory: its list of processes, its state on disk and how its processes are kept alive.

mod backoff;
mod child;
mod home;
mod last_words;
mod leftovers;
mod list;
mod probe;
mod record;
mod state;

pub(crate) use child::{Exits, Supervised};
pub(crate) use home::{Home, write_private};
pub(crate) use last_words::last_words;
pub(crate) use leftovers::{end_all, signal};
pub(crate) use list::{Process, ProcessList};
pub(crate) use probe::{Readiness, probe_client, readiness};
pub(crate) use record::Record;
pub(crate) use state::{DatabaseReference, FleetState, Phase, ProcessState};
