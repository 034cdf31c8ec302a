//! Agents of level 3: they work outside, reach their parent over a WebSocket, and stand in the registry through it.

mod attend;
mod client;
mod connection;
mod parent;
mod protocol;
mod roster;

pub use client::{ChildClient, ChildHandle, ChildIntroduction, Seated, Unusable};
pub use connection::{ChildConnection, ChildEvent, ConnectionSettings, Ended, Input, Output};
pub use parent::{Children, ChildrenSettings, FromChild, NotConnected};
pub use protocol::{Again, Credential, Hello, ToChild, ToParent};
