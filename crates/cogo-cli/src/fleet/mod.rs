//! The fleet of one directory: its list of processes, its state on disk and how its processes are kept alive.

mod autoscaler;
mod changed;
mod chronicle;
mod control;
mod herald;
mod home;
mod instance;
mod last_words;
mod leftovers;
mod list;
mod list_check;
mod operator;
mod orders;
mod own_settings;
mod picture;
mod probe;
mod record;
mod state;
mod steering;
mod target;
mod tree;

pub(crate) use autoscaler::{Pace, ScaledPool, run as run_autoscaler};
pub(crate) use changed::Changed;
pub(crate) use chronicle::{Chronicle, Ending};
pub(crate) use control::{Request, ask, listen, read_request, reply, socket_file};
pub(crate) use herald::Herald;
pub(crate) use home::{Home, write_private};
pub(crate) use instance::Launcher;
pub(crate) use last_words::last_words;
pub(crate) use leftovers::{end_all, signal};
pub(crate) use list::{Claimed, Process, ProcessList};
pub(crate) use operator::{first_slot, operator};
pub(crate) use orders::{Orders, told};
pub(crate) use own_settings::OwnSettings;
#[cfg(test)]
pub(crate) use picture::TreeExit;
pub(crate) use picture::{Floor, TreeNode};
pub(crate) use probe::{Readiness, probe_client, readiness};
pub(crate) use record::Record;
pub(crate) use state::{DatabaseReference, FleetState, Phase, ProcessState};
pub(crate) use steering::Steering;
pub(crate) use tree::tree;
