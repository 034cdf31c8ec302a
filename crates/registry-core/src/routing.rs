//! Where a message goes: to one agent, or to whoever claims first; broadcast and request/reply belong to the bus.

use std::sync::Arc;

use cogo_contracts::Route;

use crate::{
    entry::{AgentAddress, Entry},
    query::Query,
    view::{Stale, View},
};

/// What becomes of a message for an agent that is not there, or may not claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenGone {
    /// It is not sent.
    Refuse,
    /// It goes to the route, and whoever claims first has it.
    LoadBalanced,
}

/// Where to send a message: the route, and the one agent that may claim it, if it is for one alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// Route to enqueue on.
    pub route: Route,
    /// `name/slot` for the message's `target_instance`; none: whoever claims first.
    pub target_instance: Option<String>,
    /// The agent that it will reach if nothing changes; none when that is open.
    pub agent: Option<Arc<Entry>>,
    /// Version of the registry by which this was decided.
    pub registry_version: i64,
}

/// Why there is nowhere to send a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDestination {
    /// No agent owns the slot, or it may not claim now.
    #[error("Agent {instance} is {state}")]
    Gone {
        /// `name/slot`.
        instance: String,
        /// Its state, or `not in the registry`.
        state: String,
    },
    /// The agent does not claim this route.
    #[error("Agent {instance} does not claim route {route}")]
    OtherRoute {
        /// `name/slot`.
        instance: String,
        /// The route that was asked for.
        route: String,
    },
    /// No healthy agent claims the route.
    #[error("Nobody who is healthy claims route {route}")]
    Nobody {
        /// The route.
        route: String,
    },
    /// The copy of the registry is too old to decide by.
    #[error("The copy of the registry is too old to route by")]
    Stale(#[source] Stale),
}

impl View {
    /// To the owner of a slot (`name/slot`), by a route that it claims.
    ///
    /// The message stays with the slot: if the owner dies before it claims, the next owner of the slot gets it. A
    /// suspect owner still counts as there, since it may come back with its next beat.
    ///
    /// # Errors
    /// Why there is nowhere to send it; with [`WhenGone::LoadBalanced`] only a copy that is too old, or an agent that
    /// is there and does not claim the route.
    pub fn direct(&self, instance: &str, route: &Route, when_gone: WhenGone) -> Result<Destination, NoDestination> {
        let answer = self.resolve(instance).map_err(NoDestination::Stale)?;
        let registry_version = answer.version;
        let there = answer.value.as_ref().filter(|entry| entry.may_get_work());
        if let Some(entry) = there {
            if !entry.routes().any(|claimed| claimed == *route) {
                return Err(NoDestination::OtherRoute { instance: instance.to_owned(), route: route.to_string() });
            }
            let target_instance = Some(entry.id.instance());
            return Ok(Destination { route: route.clone(), target_instance, agent: answer.value, registry_version });
        }
        match when_gone {
            WhenGone::LoadBalanced => {
                Ok(Destination { route: route.clone(), target_instance: None, agent: None, registry_version })
            }
            WhenGone::Refuse => {
                let state =
                    answer.value.map_or_else(|| "not in the registry".to_owned(), |entry| entry.state.to_string());
                Err(NoDestination::Gone { instance: instance.to_owned(), state })
            }
        }
    }

    /// To whoever claims first on a route, as long as somebody healthy claims there at all.
    ///
    /// # Errors
    /// [`NoDestination::Nobody`]; [`NoDestination::Stale`].
    pub fn load_balanced(&self, route: &Route) -> Result<Destination, NoDestination> {
        let query = Query::capability(&format!("route:{route}")).limit(1);
        let answer = self.find_healthy(&query).map_err(NoDestination::Stale)?;
        if answer.value.is_empty() {
            return Err(NoDestination::Nobody { route: route.to_string() });
        }
        let registry_version = answer.version;
        Ok(Destination { route: route.clone(), target_instance: None, agent: None, registry_version })
    }

    /// To the less loaded of two healthy agents that fit and claim the route: for work that should be decided by load
    /// and not by who asks first.
    ///
    /// # Errors
    /// [`NoDestination::Nobody`]; [`NoDestination::Stale`].
    pub fn least_busy(&self, route: &Route, query: &Query) -> Result<Destination, NoDestination> {
        let claiming = query.clone().and_capability(&format!("route:{route}"));
        let answer = self.power_of_two(&claiming).map_err(NoDestination::Stale)?;
        let Some(entry) = answer.value else {
            return Err(NoDestination::Nobody { route: route.to_string() });
        };
        let (target_instance, registry_version) = (Some(entry.id.instance()), answer.version);
        Ok(Destination { route: route.clone(), target_instance, agent: Some(entry), registry_version })
    }
}

impl Destination {
    /// The same as an address.
    #[must_use]
    pub fn address(&self) -> AgentAddress {
        AgentAddress::BusRoute { route: self.route.clone(), target_instance: self.target_instance.clone() }
    }
}
