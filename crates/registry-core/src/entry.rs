//! A living agent as the copy of the registry in memory knows it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use cogo_contracts::{AgentId, AgentState, Endpoint, Location, Route};
use uuid::Uuid;

/// What a capability starts with that names a route which the agent claims.
const ROUTE_CAPABILITY: &str = "route:";

/// A living agent at one version of the registry. Two entries are equal when the registry says the same of both.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who it is.
    pub id: AgentId,
    /// How many owners its slot has had, this one included.
    pub epoch: i64,
    /// State of its life.
    pub state: AgentState,
    /// Name under which it claims.
    pub holder: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Where it runs, if it said so in the usual form.
    pub location: Option<Location>,
    /// Addresses at which it answers.
    pub endpoints: Vec<Endpoint>,
    /// 1 strategic, 2 operational, 3 external.
    pub level: i16,
    /// `name/slot` of the agent that answers for it.
    pub parent: Option<String>,
    /// The run in whose process it lives, if it has none of its own.
    pub carrier: Option<Uuid>,
    /// Ed25519 key by which its tokens are verified.
    pub public_key: Option<[u8; 32]>,
    pub(crate) load: Arc<Load>,
}

/// How busy an agent is, as the last look at its beats told; no part of the registry's versions.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicU32,
    /// Chosen since that look: so that many choices in a row do not all fall on the same agent.
    chosen: AtomicU32,
    not_ready: AtomicBool,
}

impl Load {
    pub(crate) fn saw(&self, in_flight: u32, ready: bool) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.chosen.store(0, Ordering::Relaxed);
        self.not_ready.store(!ready, Ordering::Relaxed);
    }

    pub(crate) fn choose(&self) {
        self.chosen.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed).saturating_add(self.chosen.load(Ordering::Relaxed))
    }
}

/// How an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// It lives in this very process.
    InProcess(Uuid),
    /// By a message on a route; `target_instance` (`name/slot`) keeps others from claiming it.
    BusRoute {
        /// A route that the agent claims.
        route: Route,
        /// The agent alone, when the message is for it alone.
        target_instance: Option<String>,
    },
    /// By a connection to an address of its own.
    Endpoint(Endpoint),
}

impl Entry {
    /// Messages that it works on, as its last beat that was looked at told, and those that it was chosen for since.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.load.now()
    }

    /// Whether it may be given work: active, and its last beat did not say that it is not ready.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state == AgentState::Active && !self.load.not_ready.load(Ordering::Relaxed)
    }

    /// Whether a message for it alone may be sent: it claims now, or will with its next beat.
    #[must_use]
    pub fn may_get_work(&self) -> bool {
        matches!(self.state, AgentState::Active | AgentState::Suspect)
    }

    /// The routes that it claims.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.capabilities.iter().filter_map(|capability| capability.strip_prefix(ROUTE_CAPABILITY)?.parse().ok())
    }

    /// The ways to reach it, nearest first; `here` is the run of the process that asks.
    #[must_use]
    pub fn addresses(&self, here: Option<Uuid>) -> Vec<AgentAddress> {
        let own_process = self.carrier.unwrap_or(self.id.instance_id);
        let inside = (here == Some(own_process)).then_some(AgentAddress::InProcess(self.id.instance_id));
        let routes =
            self.routes().map(|route| AgentAddress::BusRoute { route, target_instance: Some(self.id.instance()) });
        inside.into_iter().chain(routes).chain(self.endpoints.iter().cloned().map(AgentAddress::Endpoint)).collect()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let key = |entry: &Self| (entry.epoch, entry.state, entry.level, entry.carrier, entry.public_key);
        key(self) == key(other)
            && self.id == other.id
            && self.holder == other.holder
            && self.capabilities == other.capabilities
            && self.tags == other.tags
            && self.location == other.location
            && self.endpoints == other.endpoints
            && self.parent == other.parent
    }
}
