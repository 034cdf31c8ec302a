//! One group: its children, what it is in the middle of, and what waits for it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    ChildSpec, Exit, GroupSpec, LastExit,
    core::{
        CallId, Request, RunId,
        child::{Child, Fired, Histories, State},
        ending::GroupEnd,
        shared::{Owner, Shared},
        window::Window,
    },
    spec::join,
};

/// What waits until a group has time.
#[derive(Debug)]
pub(super) enum Message<W> {
    /// A child ended by itself.
    ChildExited { name: Arc<str>, run: RunId, exit: Exit },
    /// A restart led to a start that failed; this child is where to go on.
    TryAgain { name: Arc<str> },
    /// The pause before a restart is over.
    PauseOver { name: Arc<str> },
    /// Somebody wants something.
    Call { call: CallId, request: Request<W> },
}

/// What a group is in the middle of.
#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Stopping {
        /// Names still to be stopped, the last first.
        todo: Vec<Arc<str>>,
        in_flight: HashSet<Arc<str>>,
        then: AfterStop,
    },
    Starting {
        todo: VecDeque<Arc<str>>,
        then: AfterStart,
    },
    Over,
}

#[derive(Debug)]
pub(super) enum AfterStop {
    /// Starts this child, and with it what the strategy says.
    Restart {
        name: Arc<str>,
    },
    /// Waits, then starts this child.
    Pause {
        name: Arc<str>,
    },
    Reply {
        call: CallId,
    },
    End,
}

#[derive(Debug)]
pub(super) enum AfterStart {
    Begin,
    Restart,
    /// Answers; a new child that does not start is forgotten.
    Reply {
        call: CallId,
        is_new: bool,
    },
}

#[derive(Debug)]
pub(super) struct Group<W> {
    pub(super) run: RunId,
    pub(super) parent: Option<Owner>,
    pub(super) path: String,
    pub(super) spec: Arc<GroupSpec<W>>,
    /// Names in the order of their start.
    pub(super) order: Vec<Arc<str>>,
    pub(super) children: HashMap<Arc<str>, Child<W>>,
    pub(super) window: Window,
    pub(super) phase: Phase,
    pub(super) inbox: VecDeque<Message<W>>,
    /// Set once it ends; nothing is taken from the inbox any more.
    pub(super) end: Option<GroupEnd>,
}

impl<W: Clone> Group<W> {
    pub(super) fn new(
        run: RunId,
        parent: Option<Owner>,
        path: String,
        spec: Arc<GroupSpec<W>>,
        mut histories: Histories,
    ) -> Self {
        let mut group = Self {
            run,
            parent,
            path,
            order: Vec::with_capacity(spec.children.len()),
            children: HashMap::with_capacity(spec.children.len()),
            spec: Arc::clone(&spec),
            window: Window::default(),
            phase: Phase::Idle,
            inbox: VecDeque::new(),
            end: None,
        };
        for child in &spec.children {
            let name: Arc<str> = child.name.as_str().into();
            let history = histories.remove(&name).unwrap_or_default();
            group.add(name, child.clone(), Duration::ZERO).history = history;
        }
        group
    }

    pub(super) fn add(&mut self, name: Arc<str>, spec: ChildSpec<W>, since: Duration) -> &mut Child<W> {
        let child = Child {
            path: join(&self.path, &spec.name),
            spec: Arc::new(spec),
            state: State::Stopped,
            since,
            pid: None,
            dynamic: false,
            history: crate::core::child::History::default(),
        };
        self.order.push(Arc::clone(&name));
        self.children.entry(name).insert_entry(child).into_mut()
    }

    pub(super) fn remove(&mut self, name: &Arc<str>) {
        self.children.remove(name);
        self.order.retain(|other| other != name);
    }

    /// Starts the first of the children.
    pub(super) fn begin(&mut self, shared: &mut Shared<W>) {
        for child in self.children.values_mut() {
            child.since = shared.now;
        }
        self.phase = Phase::Starting { todo: self.order.iter().cloned().collect(), then: AfterStart::Begin };
    }

    /// Goes on until it has to wait for something.
    pub(super) fn go_on(&mut self, shared: &mut Shared<W>) {
        while match self.phase {
            Phase::Idle => self.next_message(shared),
            Phase::Stopping { .. } => self.go_on_stopping(shared),
            Phase::Starting { .. } => self.go_on_starting(shared),
            Phase::Over => false,
        } {}
    }

    fn next_message(&mut self, shared: &mut Shared<W>) -> bool {
        let Some(message) = self.inbox.pop_front() else { return false };
        match message {
            Message::ChildExited { name, run, exit } => {
                let is_current = |child: &Child<W>| child.state == State::Ended { run };
                if self.children.get(&name).is_some_and(is_current) {
                    self.child_ended_by_itself(shared, &name, &exit);
                }
            }
            Message::TryAgain { name } => {
                if self.is_to_be_restarted(&name) {
                    self.restart(shared, &name);
                }
            }
            Message::PauseOver { name } => {
                if self.is_to_be_restarted(&name) {
                    self.stop_before_restart(AfterStop::Restart { name });
                }
            }
            Message::Call { call, request } => self.answer(shared, call, request),
        }
        true
    }

    fn is_to_be_restarted(&self, name: &Arc<str>) -> bool {
        self.children.get(name).is_some_and(|child| child.state == State::Restarting { timer: None })
    }

    pub(super) fn set_state(&mut self, shared: &mut Shared<W>, name: &Arc<str>, state: State) {
        if let Some(child) = self.children.get_mut(name) {
            shared.timers.cancel(child.state.timer());
            child.state = state;
            child.since = shared.now;
        }
    }

    pub(super) fn child_spawned(&mut self, shared: &mut Shared<W>, name: &Arc<str>, run: RunId, pid: u32) {
        let Some(child) = self.children.get_mut(name) else { return };
        if child.state.run() == Some(run) {
            child.pid = Some(pid);
            shared.event(&child.path, crate::Happened::Spawned { pid });
        }
    }

    /// A run is over, whoever wanted it.
    pub(super) fn child_exited(
        &mut self,
        shared: &mut Shared<W>,
        name: &Arc<str>,
        run: RunId,
        exit: Exit,
        inside: Histories,
    ) {
        shared.owners.remove(&run);
        let Some(child) = self.children.get_mut(name) else { return };
        if child.state.run() != Some(run) {
            return;
        }
        child.pid = None;
        child.history.last_exit = Some(LastExit { exit: exit.clone(), at: shared.now });
        child.history.inside = inside;
        let path = child.path.clone();
        match child.state {
            State::Starting { timed_out, .. } => {
                let reason = if timed_out { "it did not start in time".to_owned() } else { exit.to_string() };
                self.start_failed(shared, name, reason);
            }
            State::Running { .. } => {
                self.forgive_after_long_life(shared, name);
                shared.event(&path, crate::Happened::Exited { exit: exit.clone() });
                self.set_state(shared, name, State::Ended { run });
                self.inbox.push_back(Message::ChildExited { name: Arc::clone(name), run, exit });
            }
            State::Stopping { .. } => {
                shared.event(&path, crate::Happened::Exited { exit });
                self.stopped(shared, name);
            }
            State::Stopped | State::Ended { .. } | State::Restarting { .. } => {}
        }
    }

    fn forgive_after_long_life(&mut self, shared: &Shared<W>, name: &Arc<str>) {
        let Some(child) = self.children.get_mut(name) else { return };
        let lived = shared.now.saturating_sub(child.since);
        if child.spec.backoff.is_some_and(|backoff| lived >= backoff.forgiven_after) {
            child.history.early_ends = 0;
        }
    }

    /// A deadline of a child has passed.
    pub(super) fn timer(
        &mut self,
        shared: &mut Shared<W>,
        name: &Arc<str>,
        key: crate::core::timers::TimerKey,
    ) -> Fired {
        let Some(child) = self.children.get_mut(name).filter(|child| child.state.timer() == Some(key)) else {
            return Fired::Handled;
        };
        let path = child.path.clone();
        match child.state {
            State::Starting { run, timed_out: false, .. } => {
                let timer = Some(shared.kill(run, self.run, name, &path));
                child.state = State::Starting { run, timer, timed_out: true };
            }
            State::Stopping { run, killed: false, .. } => {
                let timer = Some(shared.kill(run, self.run, name, &path));
                child.state = State::Stopping { run, timer, killed: true };
            }
            State::Starting { run, .. } | State::Stopping { run, .. } => {
                shared.owners.remove(&run);
                shared.event(&path, crate::Happened::Leaked);
                shared.leaked.push(path);
                self.stopped(shared, name);
                return Fired::Leaked;
            }
            State::Restarting { .. } => {
                child.state = State::Restarting { timer: None };
                self.inbox.push_back(Message::PauseOver { name: Arc::clone(name) });
            }
            State::Stopped | State::Running { .. } | State::Ended { .. } => {}
        }
        Fired::Handled
    }

    /// What its children shall remember when the group is started again.
    pub(super) fn histories(&self) -> Histories {
        let kept = self.children.iter().filter(|(_, child)| !child.dynamic);
        kept.map(|(name, child)| (Arc::clone(name), child.history.clone())).collect()
    }
}
