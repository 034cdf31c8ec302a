//! Pools: a wanted number of members that are warm before they work, lent out fairly and never beyond their limits.
//!
//! [`Core`] is the whole of the rules and does no I/O. [`Pool`] makes real members and lends them.

mod core;
mod handle;
mod member;
mod pick;
mod settings;

pub use core::{Answer, Core, Output, Pressure, Refused};
pub use handle::{Lease, Pool};
pub use member::MemberId;
pub use pick::{Picker, Strategy};
pub use settings::{Invalid, Settings};

pub use crate::waiting_room::Ticket;
