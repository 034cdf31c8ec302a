//! What the registry wants of the children, as the parent's copy of it tells: orders to pass on, and runs that have ended.

use std::sync::Arc;

use cogo_contracts::AgentState;
use cogo_registry_core::View;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{protocol::Order, roster::Attendance};

/// What is to be done about a connected child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing new.
    Nothing,
    /// It has to be told.
    Tell(Order),
    /// Its run has ended, though not by its own word.
    Ended {
        /// Whether another run has its slot.
        superseded: bool,
    },
}

/// What one connection has seen of its run in the registry.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The copy in memory may be older than the run; before it was seen there, missing means nothing.
    seen: bool,
    told: Option<Order>,
}

impl Following {
    /// What is to be done now, according to the copy of the registry; nothing while that is too old.
    pub(super) fn wish(&mut self, view: &View, attendance: &Attendance) -> Wish {
        let (run, instance) = (attendance.seat.membership().instance_id, attendance.seat.instance());
        let looked = view.look(|registry| {
            (registry.version(), registry.run(run).map(|entry| entry.state), registry.owner(&instance).is_some())
        });
        let Ok(answer) = looked else { return Wish::Nothing };
        let (version, state, owned) = answer.value;
        if version < attendance.since {
            return Wish::Nothing;
        }
        let Some(state) = state else {
            return if self.seen { Wish::Ended { superseded: owned } } else { Wish::Nothing };
        };
        self.seen = true;
        let order = match state {
            AgentState::Registered | AgentState::Active | AgentState::Suspect => Order::Work,
            AgentState::Suspended => Order::Pause,
            AgentState::Draining | AgentState::Terminated => Order::Leave,
        };
        if self.told.replace(order) == Some(order) { Wish::Nothing } else { Wish::Tell(order) }
    }

    /// Whether the child was told to leave.
    pub(super) fn has_to_leave(&self) -> bool {
        self.told == Some(Order::Leave)
    }
}

/// Tells every connection of each change of the registry, until the token is cancelled.
pub(super) async fn follow(view: View, changes: Arc<watch::Sender<i64>>, stop: CancellationToken) {
    loop {
        let version = view.version();
        changes.send_replace(version);
        tokio::select! {
            () = stop.cancelled() => return,
            () = view.wait_for(version + 1) => {}
        }
    }
}
