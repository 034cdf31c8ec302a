//! One child as its group knows it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    ChildSpec, LastExit, NodeState, Restart,
    core::{RunId, timers::TimerKey},
};

/// What a child is doing. It has a run from `Starting` until `Ended` was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Stopped,
    Starting {
        run: RunId,
        timer: Option<TimerKey>,
        /// It took too long and was killed; its end is waited for.
        timed_out: bool,
    },
    Running {
        run: RunId,
    },
    /// It ended by itself and the message about it waits in the inbox.
    Ended {
        run: RunId,
    },
    Stopping {
        run: RunId,
        timer: Option<TimerKey>,
        killed: bool,
    },
    /// It will be started again: when the timer fires, else when the message about it is dealt with.
    Restarting {
        timer: Option<TimerKey>,
    },
}

impl State {
    pub(super) const fn of_node(&self) -> NodeState {
        match self {
            Self::Stopped => NodeState::Stopped,
            Self::Starting { .. } => NodeState::Starting,
            Self::Running { .. } => NodeState::Running,
            Self::Ended { .. } => NodeState::Ended,
            Self::Stopping { .. } => NodeState::Stopping,
            Self::Restarting { .. } => NodeState::Restarting,
        }
    }

    pub(super) const fn timer(&self) -> Option<TimerKey> {
        match self {
            Self::Starting { timer, .. } | Self::Stopping { timer, .. } | Self::Restarting { timer } => *timer,
            Self::Stopped | Self::Running { .. } | Self::Ended { .. } => None,
        }
    }

    pub(super) const fn run(&self) -> Option<RunId> {
        match self {
            Self::Starting { run, .. } | Self::Running { run } | Self::Ended { run } | Self::Stopping { run, .. } => {
                Some(*run)
            }
            Self::Stopped | Self::Restarting { .. } => None,
        }
    }
}

/// What outlives a restart of the group around a child.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) restarts: u32,
    pub(super) early_ends: u32,
    pub(super) last_exit: Option<LastExit>,
    /// Whether it stays down until it is asked for by name.
    pub(super) parked: bool,
    pub(super) inside: Histories,
}

impl History {
    /// It was asked for, and everything below with it.
    pub(super) fn unpark(&mut self) {
        self.parked = false;
        self.inside.values_mut().for_each(Self::unpark);
    }
}

pub(super) type Histories = HashMap<Arc<str>, History>;

/// Marks the child at a path, seen from the group whose children these are.
pub(super) fn park_at(histories: &mut Histories, path: &str) {
    let (name, below) = path.split_once('/').map_or((path, None), |(name, below)| (name, Some(below)));
    let history = histories.entry(name.into()).or_default();
    match below {
        Some(below) => park_at(&mut history.inside, below),
        None => history.parked = true,
    }
}

#[derive(Debug)]
pub(super) struct Child<W> {
    pub(super) spec: Arc<ChildSpec<W>>,
    pub(super) path: String,
    pub(super) state: State,
    pub(super) since: Duration,
    pub(super) pid: Option<u32>,
    pub(super) dynamic: bool,
    pub(super) history: History,
}

impl<W> Child<W> {
    pub(super) fn is_temporary(&self) -> bool {
        self.spec.restart == Restart::Temporary
    }
}

/// What a timer led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fired {
    /// What the rules say.
    Handled,
    /// A run that was killed is not gone.
    Leaked,
}
