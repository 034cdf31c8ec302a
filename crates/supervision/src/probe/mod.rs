//! Probes: is it up, does it live, can it take work, and whatever else is worth asking; with thresholds and reasons.
//!
//! The meaning is that of Kubernetes (<https://kubernetes.io/docs/concepts/workloads/pods/probes/>): nothing else is
//! asked before the startup probes succeeded; a failing liveness probe asks for a restart; a failing readiness probe
//! keeps work away; what is not known leads to no restart. [`Core`] is the rules without I/O, [`Prober`] asks on a thread
//! of its own, so that a process whose work keeps every other thread busy still answers.

mod core;
mod health;
mod prober;
mod spec;

pub use core::{Core, RunId};
pub use health::{Health, ProbeView, Reason, Status, Verdict};
pub use prober::{Error, Probe, Prober};
pub use spec::{Invalid, Kind, Spec};
