//! Where a process stands in the registry, as its parts see it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::token::Grant;

/// One run's place in the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The run.
    pub instance_id: Uuid,
    /// Name under which it claims; claims under an earlier name are lost.
    pub holder: String,
    /// How many owners the slot has had, this one included.
    pub epoch: i64,
}

/// What a process may do at this moment.
///
/// A reader of the channel sees the newest standing only. Between two looks the process may have been out of the fleet
/// and back in: then the holder differs, and whatever was claimed under the old one is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not in the registry yet; asking.
    Joining,
    /// In the registry, claiming nothing yet.
    Registered(Membership),
    /// May claim.
    Active(Membership),
    /// Told to pause: finish what is claimed, claim nothing new.
    Suspended(Membership),
    /// Finishing what is claimed. If the process did not ask for it, an operator did: then it should stop.
    Draining(Membership),
    /// Out of contact for so long, or told by the database, that others may do its work: claim nothing, cancel all
    /// work. Ends by itself.
    Fenced,
    /// Another process owns the slot: stop, with an error.
    Superseded {
        /// Holder name of the other process.
        by: String,
    },
    /// Out of the registry in good order.
    Left,
}

impl Standing {
    /// The membership under which to claim now, if claiming is allowed.
    #[must_use]
    pub fn claiming(&self) -> Option<&Membership> {
        match self {
            Self::Active(membership) => Some(membership),
            _ => None,
        }
    }

    /// The membership whose claims are still good, if there is one.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Registered(membership)
            | Self::Active(membership)
            | Self::Suspended(membership)
            | Self::Draining(membership) => Some(membership),
            Self::Joining | Self::Fenced | Self::Superseded { .. } | Self::Left => None,
        }
    }
}

/// How the process is, told with each beat.
#[derive(Debug, Default)]
pub struct Vitals {
    ready: AtomicBool,
    in_flight: AtomicU32,
    /// By `name/slot`.
    carried: Mutex<BTreeMap<String, u32>>,
}

/// What the registry told when it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Newest version of the registry.
    pub registry_version: i64,
    /// Newest version of the configuration; none in the answer to joining.
    pub config_version: Option<i64>,
    /// How often schemas have changed so far; none in the answer to joining.
    pub schema_version: Option<i64>,
    /// When it was asked; the versions were the newest at some moment after that.
    pub asked: Instant,
}

impl Vitals {
    /// Says whether the process can do its work.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Says how many messages it works on.
    pub fn set_in_flight(&self, messages: u32) {
        self.in_flight.store(messages, Ordering::Relaxed);
    }

    /// Says how many messages an agent in this process (`name/slot`) works on.
    pub fn set_carried_in_flight(&self, instance: &str, messages: u32) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.insert(instance.to_owned(), messages);
    }

    pub(crate) fn carried(&self) -> BTreeMap<String, u32> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn in_flight(&self) -> i32 {
        i32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(i32::MAX)
    }
}

/// How far the process wants to be; only ever goes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    Registered,
    Active,
    Draining,
}

/// A process's handle on its own place in the fleet; the heartbeat does what it asks for.
#[derive(Debug, Clone)]
pub struct Member {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) wanted: Arc<watch::Sender<Wanted>>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) heard: watch::Receiver<Option<Heard>>,
    pub(crate) grant: Arc<ArcSwapOption<Grant>>,
    pub(crate) nudge: Arc<Notify>,
}

impl Member {
    /// The standing now and every change of it.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Asks to claim, now and after every rejoining.
    pub fn activate(&self) {
        self.want(Wanted::Active);
    }

    /// Asks to claim nothing new; cannot be taken back.
    pub fn drain(&self) {
        self.want(Wanted::Draining);
    }

    /// What the next beat tells of the process.
    #[must_use]
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// What each answer of the registry tells, such as the newest versions.
    #[must_use]
    pub fn heard(&self) -> watch::Receiver<Option<Heard>> {
        self.heard.clone()
    }

    /// Newest version of the registry that a beat has told of, 0 before the first.
    #[must_use]
    pub fn registry_version(&self) -> i64 {
        self.heard.borrow().map_or(0, |heard| heard.registry_version)
    }

    /// A token that says who this process is, for one audience. It ends a minute after the last good beat; none while
    /// the process has no place in the fleet.
    #[must_use]
    pub fn token(&self, audience: &str) -> Option<String> {
        Some(self.grant.load().as_deref()?.token(audience))
    }

    /// Asks the registry now rather than at the next beat, since a refusal hints that the standing has changed.
    pub fn ask_now(&self) {
        self.nudge.notify_one();
    }

    fn want(&self, wish: Wanted) {
        self.wanted.send_if_modified(|wanted| {
            let further = wish > *wanted;
            *wanted = (*wanted).max(wish);
            further
        });
    }
}
