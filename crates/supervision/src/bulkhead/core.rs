//! The rules of a bulkhead without I/O: who goes in, who waits, who is turned away.

use std::time::Duration;

use crate::waiting_room::{Seat, Ticket, WaitingRoom};

/// Limits of one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// At most this many calls at once; 0 closes the domain.
    pub concurrent: usize,
    /// At most this many may wait for one of them to end.
    pub waiting: usize,
    /// Nobody waits longer than this.
    pub patience: Duration,
    /// At most this many calls of one tenant at once.
    pub per_tenant: usize,
}

impl Default for Settings {
    /// 16 calls, 64 waiting for at most 10 s, and no limit per tenant but fairness.
    fn default() -> Self {
        Self { concurrent: 16, waiting: 64, patience: Duration::from_secs(10), per_tenant: usize::MAX }
    }
}

/// Why somebody did not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many call and as many wait as may.
    #[error("Domain is full")]
    Full,
    /// It waited as long as it may.
    #[error("Domain stayed full for {} ms", waited.as_millis())]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },
    /// It gave its place in the full waiting room to a tenant that had fewer.
    #[error("Place went to a tenant that had fewer")]
    Displaced,
}

/// What somebody who arrives is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Goes in, and must [`leave`](Core::leave) at the end.
    In,
    /// Waits, and is called by what [`leave`](Core::leave) and [`give_up`](Core::give_up) answer; `displaced` must go.
    Waits {
        /// Its own ticket.
        ticket: Ticket,
        /// The ticket of whoever had to make room.
        displaced: Option<Ticket>,
    },
    /// Is turned away.
    Full,
}

/// The rules of one domain.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    room: WaitingRoom,
    running: usize,
}

impl Core {
    /// Nobody is in.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, room: WaitingRoom::new(settings.waiting), running: 0 }
    }

    /// Calls at this moment.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }

    /// How many wait at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.room.waiting()
    }

    /// Lets somebody of a tenant in if there is a place at this moment.
    pub fn go_in(&mut self, tenant: &str) -> bool {
        // whoever may enter is called at once, so those who wait now could not enter
        let has_place = self.running < self.settings.concurrent && self.room.inside(tenant) < self.settings.per_tenant;
        if has_place {
            self.running += 1;
            self.room.enter(tenant);
        }
        has_place
    }

    /// Somebody of a tenant wants in.
    pub fn arrive(&mut self, tenant: &str) -> Arrival {
        if self.go_in(tenant) {
            return Arrival::In;
        }
        match self.room.sit(tenant) {
            Seat::Taken(ticket) => Arrival::Waits { ticket, displaced: None },
            Seat::TakenFrom { ticket, displaced } => Arrival::Waits { ticket, displaced: Some(displaced) },
            Seat::Full => Arrival::Full,
        }
    }

    /// A call of a tenant has ended; answers who goes in instead.
    pub fn leave(&mut self, tenant: &str) -> Option<Ticket> {
        self.running = self.running.saturating_sub(1);
        self.room.leave(tenant);
        if self.running >= self.settings.concurrent {
            return None;
        }
        let per_tenant = self.settings.per_tenant;
        let (ticket, _tenant) = self.room.call_next(|inside| inside < per_tenant)?;
        self.running += 1;
        Some(ticket)
    }

    /// Somebody waits no longer; false if it was called or displaced meanwhile.
    pub fn give_up(&mut self, tenant: &str, ticket: Ticket) -> bool {
        self.room.stand_up(tenant, ticket)
    }
}
