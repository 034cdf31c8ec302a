//! What all groups of a tree share: the time, the runs, and the way out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    End, Event, Exit, Happened,
    core::{
        CallError, CallId, Output, RunId,
        chance::Chance,
        child::Histories,
        group::Group,
        timers::{TimerKey, Timers},
    },
};

/// Whose child a run is.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) group: RunId,
    pub(super) name: Arc<str>,
}

/// What one group tells another, and what is told of a run.
#[derive(Debug)]
pub(super) enum Signal<W> {
    Begin(Box<Group<W>>),
    End { run: RunId },
    Started { run: RunId },
    Exited { run: RunId, exit: Exit, inside: Histories },
}

#[derive(Debug)]
pub(super) struct Shared<W> {
    pub(super) now: Duration,
    pub(super) outputs: VecDeque<Output<W>>,
    pub(super) signals: VecDeque<Signal<W>>,
    pub(super) owners: HashMap<RunId, Owner>,
    pub(super) timers: Timers,
    pub(super) chance: Chance,
    /// Whoever stops is killed at once.
    pub(super) hurry: bool,
    pub(super) leaked: Vec<String>,
    pub(super) over: Option<End>,
    patience: Duration,
    next_run: u64,
}

impl<W> Shared<W> {
    pub(super) fn new(seed: u64, patience: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            outputs: VecDeque::new(),
            signals: VecDeque::new(),
            owners: HashMap::new(),
            timers: Timers::default(),
            chance: Chance::new(seed),
            hurry: false,
            leaked: Vec::new(),
            over: None,
            patience,
            next_run: 0,
        }
    }

    pub(super) fn new_run(&mut self) -> RunId {
        self.next_run += 1;
        RunId(self.next_run)
    }

    pub(super) fn event(&mut self, path: &str, happened: Happened) {
        self.outputs.push_back(Output::Event(Event { at: self.now, path: path.to_owned(), happened }));
    }

    pub(super) fn reply(&mut self, call: CallId, result: Result<(), CallError>) {
        self.outputs.push_back(Output::Reply { call, result });
    }

    pub(super) fn timer_after(&mut self, pause: Duration, group: RunId, name: &Arc<str>) -> TimerKey {
        self.timers.add(self.now.saturating_add(pause), Owner { group, name: Arc::clone(name) })
    }

    /// Kills a run; the timer fires when it is still not gone.
    pub(super) fn kill(&mut self, run: RunId, group: RunId, name: &Arc<str>, path: &str) -> TimerKey {
        self.event(path, Happened::Killing);
        self.outputs.push_back(Output::Kill { run });
        self.timer_after(self.patience, group, name)
    }

    pub(super) fn finish(&mut self, end: End) {
        self.over = Some(end.clone());
        self.outputs.push_back(Output::Over(end));
    }
}
