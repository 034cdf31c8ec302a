//! Starting children one after the other.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    Happened, Kind,
    core::{
        CallError, Output,
        child::State,
        ending::GroupEnd,
        group::{AfterStart, Group, Message, Phase},
        shared::{Owner, Shared, Signal},
    },
};

impl<W: Clone> Group<W> {
    pub(super) fn start_these(&mut self, names: VecDeque<Arc<str>>, then: AfterStart) {
        self.phase = Phase::Starting { todo: names, then };
    }

    /// Starts the next one, unless one is on its way; whether there is more to do now.
    pub(super) fn go_on_starting(&mut self, shared: &mut Shared<W>) -> bool {
        let Phase::Starting { todo, .. } = &mut self.phase else { return false };
        let Some(name) = todo.front() else {
            self.all_started(shared);
            return true;
        };
        let child = self.children.get(name);
        match child.map(|child| child.state) {
            // one that is asked for is parked no more
            Some(State::Stopped) if child.is_some_and(|child| child.history.parked) => {
                todo.pop_front();
                true
            }
            Some(State::Stopped | State::Restarting { .. }) => {
                let name = Arc::clone(name);
                self.start(shared, &name);
                false
            }
            Some(State::Starting { .. }) => false,
            // started, or ended since
            Some(State::Running { .. } | State::Ended { .. } | State::Stopping { .. }) | None => {
                todo.pop_front();
                true
            }
        }
    }

    fn all_started(&mut self, shared: &mut Shared<W>) {
        let Phase::Starting { then, .. } = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        match then {
            AfterStart::Begin => shared.signals.push_back(Signal::Started { run: self.run }),
            AfterStart::Restart => {}
            AfterStart::Reply { call, .. } => shared.reply(call, Ok(())),
        }
    }

    fn start(&mut self, shared: &mut Shared<W>, name: &Arc<str>) {
        let run = shared.new_run();
        let Some(child) = self.children.get_mut(name) else { return };
        let spec = Arc::clone(&child.spec);
        let path = child.path.clone();
        shared.owners.insert(run, Owner { group: self.run, name: Arc::clone(name) });
        shared.event(&path, Happened::Starting);
        let timer = match &spec.kind {
            Kind::Worker { work, start_timeout, .. } => {
                shared.outputs.push_back(Output::Start { run, path, work: work.clone() });
                start_timeout.map(|limit| shared.timer_after(limit, self.run, name))
            }
            Kind::Group(inside) => {
                let histories = std::mem::take(&mut child.history.inside);
                let parent = Some(Owner { group: self.run, name: Arc::clone(name) });
                let group = Self::new(run, parent, path, Arc::new(inside.clone()), histories);
                shared.signals.push_back(Signal::Begin(Box::new(group)));
                None
            }
        };
        self.set_state(shared, name, State::Starting { run, timer, timed_out: false });
    }

    pub(super) fn child_started(&mut self, shared: &mut Shared<W>, name: &Arc<str>, run: super::RunId) {
        let Some(child) = self.children.get_mut(name) else { return };
        // one that is being stopped or was too slow may still say so
        if !matches!(child.state, State::Starting { run: current, timed_out: false, .. } if current == run) {
            return;
        }
        if matches!(self.phase, Phase::Starting { then: AfterStart::Restart, .. }) {
            child.history.restarts = child.history.restarts.saturating_add(1);
        }
        shared.event(&child.path, Happened::Started { restarts: child.history.restarts });
        self.set_state(shared, name, State::Running { run });
    }

    pub(super) fn start_failed(&mut self, shared: &mut Shared<W>, name: &Arc<str>, reason: String) {
        self.set_state(shared, name, State::Stopped);
        let Some(child) = self.children.get(name) else { return };
        let path = child.path.clone();
        shared.event(&path, Happened::StartFailed { reason: reason.clone() });
        let Phase::Starting { then, .. } = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        match then {
            AfterStart::Begin => self.end(shared, GroupEnd::StartFailed { child: path, reason }),
            AfterStart::Restart => {
                self.set_state(shared, name, State::Restarting { timer: None });
                // behind what waits already, so that a wish to end or to forget the child is heard
                self.inbox.push_back(Message::TryAgain { name: Arc::clone(name) });
            }
            AfterStart::Reply { call, is_new } => {
                if is_new {
                    self.remove(name);
                }
                shared.reply(call, Err(CallError::StartFailed { reason }));
            }
        }
    }

    /// Counts as never begun, for a picture.
    pub(super) fn not_begun(spec: &Arc<crate::GroupSpec<W>>, run: super::RunId, path: String) -> Self {
        Self::new(run, None, path, Arc::clone(spec), HashMap::new())
    }
}
