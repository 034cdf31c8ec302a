//! Which children a parent has, and through which connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use cogo_registry_core::Seat;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::protocol::Order;

/// Messages for a child that wait before their sender does.
const WAITING: usize = 64;

/// The children by `name/slot`.
#[derive(Debug, Default)]
pub(super) struct Roster {
    places: Mutex<HashMap<String, Place>>,
}

/// A child that is connected, or was a short while ago.
#[derive(Debug)]
struct Place {
    seat: Arc<Seat>,
    paused: Arc<AtomicBool>,
    /// What the child said last that it does.
    obeys: Option<Order>,
    /// Counts the connections of this child; only the newest may change the place.
    connection: u64,
    /// Ends the newest connection; none while there is none.
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    messages: mpsc::Sender<Value>,
    end: CancellationToken,
}

/// One connection of a child.
#[derive(Debug)]
pub(super) struct Attendance {
    pub(super) seat: Arc<Seat>,
    /// Whether the loss of a connection, and not an operator, has suspended this run.
    pub(super) paused: Arc<AtomicBool>,
    pub(super) connection: u64,
    /// Version of the registry from which on it tells the truth about this connection.
    pub(super) since: i64,
    pub(super) messages: mpsc::Receiver<Value>,
    /// Fires when another connection has taken the place.
    pub(super) replaced: CancellationToken,
}

impl Roster {
    /// The seat of a child, if it has one.
    pub(super) fn seat(&self, instance: &str) -> Option<Arc<Seat>> {
        self.places().get(instance).map(|place| Arc::clone(&place.seat))
    }

    /// How many children have a place.
    pub(super) fn len(&self) -> usize {
        self.places().len()
    }

    /// The children that are connected now, by name.
    pub(super) fn connected(&self) -> Vec<String> {
        let places = self.places();
        let mut names: Vec<String> =
            places.iter().filter(|(_, place)| place.line.is_some()).map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Lets a connection take the place of a child, with the seat that it has or a new one; ends the one before.
    pub(super) fn attend(&self, seat: Arc<Seat>) -> Attendance {
        let (messages, outgoing) = mpsc::channel(WAITING);
        let replaced = CancellationToken::new();
        let line = Some(Line { messages, end: replaced.clone() });
        let mut places = self.places();
        let before = places.remove(&seat.instance());
        if let Some(line) = before.as_ref().and_then(|place| place.line.as_ref()) {
            line.end.cancel();
        }
        let connection = before.as_ref().map_or(1, |place| place.connection + 1);
        let same_run = before.filter(|place| Arc::ptr_eq(&place.seat, &seat));
        let paused = same_run.map(|place| place.paused).unwrap_or_default();
        let place = Place { seat: Arc::clone(&seat), paused: Arc::clone(&paused), obeys: None, connection, line };
        places.insert(seat.instance(), place);
        Attendance { seat, paused, connection, since: 0, messages: outgoing, replaced }
    }

    /// Notes that a connection is gone; false when another has taken its place before.
    pub(super) fn leave(&self, attendance: &Attendance) -> bool {
        let mut places = self.places();
        let place = places.get_mut(&attendance.seat.instance());
        let Some(place) = place.filter(|place| place.connection == attendance.connection) else { return false };
        place.line = None;
        true
    }

    /// Whether no other connection has followed this one.
    pub(super) fn is_newest(&self, attendance: &Attendance) -> bool {
        let places = self.places();
        places.get(&attendance.seat.instance()).is_some_and(|place| place.connection == attendance.connection)
    }

    /// Forgets a child that did not come back after this connection; false when it did.
    pub(super) fn forget(&self, attendance: &Attendance) -> bool {
        let mut places = self.places();
        let instance = attendance.seat.instance();
        let is_same = places.get(&instance).is_some_and(|place| place.connection == attendance.connection);
        if is_same {
            places.remove(&instance);
        }
        is_same
    }

    /// Notes what the child of this connection says that it does.
    pub(super) fn note(&self, attendance: &Attendance, order: Order) {
        let mut places = self.places();
        let place = places.get_mut(&attendance.seat.instance());
        if let Some(place) = place.filter(|place| place.connection == attendance.connection) {
            place.obeys = Some(order);
        }
    }

    /// What a child said last that it does, since it is connected.
    pub(super) fn obeys(&self, instance: &str) -> Option<Order> {
        self.places().get(instance).filter(|place| place.line.is_some())?.obeys
    }

    /// Where messages for a child go while it is connected.
    pub(super) fn line(&self, instance: &str) -> Option<mpsc::Sender<Value>> {
        self.places().get(instance)?.line.as_ref().map(|line| line.messages.clone())
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        // every change is one insertion, removal or assignment
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
