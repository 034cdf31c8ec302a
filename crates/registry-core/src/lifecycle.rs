//! The states of an agent's life and every change between them; the database holds the same matrix.

use std::fmt;

use cogo_contracts::AgentState;

/// A state of an agent's life. The first two are known to the process alone, the others are those of [`AgentState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Not in the registry, and not asking.
    Unregistered,
    /// Asking to join.
    Registering,
    /// In the registry, claiming nothing yet.
    Registered,
    /// May claim.
    Active,
    /// Missed beats; active again with the next one.
    Suspect,
    /// Told to pause.
    Suspended,
    /// Finishes what it has.
    Draining,
    /// Ended; never comes back under this instance id.
    Terminated,
}

/// One change that a life may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// State before.
    pub from: Stage,
    /// State after.
    pub to: Stage,
    /// What the log calls it.
    pub op: &'static str,
}

/// Every change that there is. `registry.transitions` holds the same rows, and a trigger refuses all others.
pub const TRANSITIONS: [Transition; 18] = {
    use Stage::{Active, Draining, Registered, Registering, Suspect, Suspended, Terminated, Unregistered};
    [
        change(Unregistered, Registering, "registering"),
        change(Registering, Unregistered, "refused"),
        change(Registering, Registered, "registered"),
        change(Registered, Active, "activated"),
        change(Registered, Draining, "draining"),
        change(Registered, Terminated, "terminated"),
        change(Active, Suspect, "suspected"),
        change(Active, Suspended, "suspended"),
        change(Active, Draining, "draining"),
        change(Active, Terminated, "terminated"),
        change(Suspect, Active, "recovered"),
        change(Suspect, Suspended, "suspended"),
        change(Suspect, Draining, "draining"),
        change(Suspect, Terminated, "terminated"),
        change(Suspended, Active, "resumed"),
        change(Suspended, Draining, "draining"),
        change(Suspended, Terminated, "terminated"),
        change(Draining, Terminated, "terminated"),
    ]
};

const fn change(from: Stage, to: Stage, op: &'static str) -> Transition {
    Transition { from, to, op }
}

impl Stage {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Unregistered,
        Self::Registering,
        Self::Registered,
        Self::Active,
        Self::Suspect,
        Self::Suspended,
        Self::Draining,
        Self::Terminated,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Registering => "registering",
            Self::Registered => AgentState::Registered.as_str(),
            Self::Active => AgentState::Active.as_str(),
            Self::Suspect => AgentState::Suspect.as_str(),
            Self::Suspended => AgentState::Suspended.as_str(),
            Self::Draining => AgentState::Draining.as_str(),
            Self::Terminated => AgentState::Terminated.as_str(),
        }
    }

    /// The change from this state to another, if there is one; staying is none.
    #[must_use]
    pub fn change_to(self, to: Self) -> Option<Transition> {
        TRANSITIONS.into_iter().find(|transition| transition.from == self && transition.to == to)
    }

    /// Whether an agent in this state may claim messages.
    #[must_use]
    pub const fn may_claim(self) -> bool {
        matches!(self, Self::Active)
    }
}

impl From<AgentState> for Stage {
    fn from(state: AgentState) -> Self {
        match state {
            AgentState::Registered => Self::Registered,
            AgentState::Active => Self::Active,
            AgentState::Suspect => Self::Suspect,
            AgentState::Suspended => Self::Suspended,
            AgentState::Draining => Self::Draining,
            AgentState::Terminated => Self::Terminated,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_can_end_and_none_comes_back() {
        for stage in Stage::ALL.into_iter().filter(|stage| *stage > Stage::Registering) {
            let can_end = stage.change_to(Stage::Terminated).is_some();
            assert_eq!(can_end, stage != Stage::Terminated, "{stage}");
            assert!(Stage::Terminated.change_to(stage).is_none(), "{stage}");
            assert!(Stage::Draining.change_to(stage).is_none() || stage == Stage::Terminated, "{stage}");
        }
    }

    #[test]
    fn no_change_stands_twice_and_staying_is_none() {
        for (number, one) in TRANSITIONS.iter().enumerate() {
            assert_ne!(one.from, one.to);
            assert!(TRANSITIONS[number + 1..].iter().all(|other| (other.from, other.to) != (one.from, one.to)));
        }
    }
}
