//! Bulkheads: one domain that is slow must not take the room of the others, nor one tenant that of the rest.

mod core;
mod handle;

pub use core::{Arrival, Core, Refused, Settings};
pub use handle::{Bulkhead, Bulkheads, Entry};

pub use crate::waiting_room::Ticket;
