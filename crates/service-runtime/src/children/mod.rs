//! Agents of level 3: they work outside, reach their parent over a WebSocket, and stand in the registry through it.

mod attempt;
mod attend;
mod client;
mod connection;
mod line;
mod mount;
mod orders;
mod parent;
mod protocol;
mod roster;
mod trust;
mod work;

pub use client::{ChildClient, ChildHandle, ChildIntroduction, Seated, Unusable};
pub use connection::{ChildConnection, ChildEvent, ConnectionSettings, Ended, Input, Output};
pub use line::{Trouble, TroubleKind};
pub use mount::ChildAccess;
pub use parent::{Children, ChildrenSettings, FromChild, NotConnected};
pub use protocol::{Again, Credential, Hello, Order, ToChild, ToParent};
pub use trust::{NoAuthority, Trust};
pub use work::ChildWorker;

#[cfg(test)]
pub(crate) use attempt::Pace;
