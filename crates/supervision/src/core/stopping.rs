//! Stopping children, the last started first.

use std::{collections::HashSet, sync::Arc};

use crate::{
    Happened, Kind, Shutdown, StopOrder,
    core::{
        Output,
        child::State,
        group::{AfterStart, AfterStop, Group, Phase},
        shared::{Shared, Signal},
    },
};

impl<W: Clone> Group<W> {
    pub(super) fn stop_these(&mut self, names: Vec<Arc<str>>, then: AfterStop) {
        self.phase = Phase::Stopping { todo: names, in_flight: HashSet::new(), then };
    }

    /// Stops the next ones as far as the order allows; whether there is more to do now.
    pub(super) fn go_on_stopping(&mut self, shared: &mut Shared<W>) -> bool {
        let one_by_one = self.spec.stop_order == StopOrder::Reverse;
        loop {
            let Phase::Stopping { todo, in_flight, .. } = &mut self.phase else { return false };
            if one_by_one && !in_flight.is_empty() {
                return false;
            }
            let Some(name) = todo.pop() else { break };
            if self.stop(shared, &name)
                && let Phase::Stopping { in_flight, .. } = &mut self.phase
            {
                in_flight.insert(name);
            }
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Stopping { in_flight, then, .. } if in_flight.is_empty() => {
                self.all_stopped(shared, then);
                true
            }
            waiting => {
                self.phase = waiting;
                false
            }
        }
    }

    fn all_stopped(&mut self, shared: &mut Shared<W>, then: AfterStop) {
        match then {
            AfterStop::Restart { name } => {
                // should one before it not start, it is only one of those that are down
                self.set_state(shared, &name, State::Stopped);
                let names = self.restarted_with(&name).into_iter().chain([name]);
                let names: HashSet<Arc<str>> = names.collect();
                let in_order = self.order.iter().filter(|name| names.contains(*name)).cloned().collect();
                self.start_these(in_order, AfterStart::Restart);
            }
            AfterStop::Pause { name } => self.pause(shared, &name),
            AfterStop::Reply { call } => shared.reply(call, Ok(())),
            AfterStop::End => self.phase = Phase::Over,
        }
    }

    /// Begins to stop a child; whether its end has to be waited for.
    fn stop(&mut self, shared: &mut Shared<W>, name: &Arc<str>) -> bool {
        let Some(child) = self.children.get(name) else { return false };
        let (run, path) = match child.state {
            State::Starting { run, .. } | State::Running { run } => (run, child.path.clone()),
            State::Stopping { .. } => return true,
            State::Stopped | State::Ended { .. } | State::Restarting { .. } => {
                self.stopped(shared, name);
                return false;
            }
        };
        let shutdown = match &child.spec.kind {
            Kind::Group(_) => None,
            Kind::Worker { .. } if shared.hurry => Some(Shutdown::BrutalKill),
            Kind::Worker { shutdown, .. } => Some(*shutdown),
        };
        let was_killed = matches!(child.state, State::Starting { timed_out: true, .. });
        let mut killed = was_killed;
        shared.event(&path, Happened::Stopping);
        let timer = match shutdown {
            _ if was_killed => Some(shared.kill(run, self.run, name, &path)),
            None => {
                shared.signals.push_back(Signal::End { run });
                None
            }
            Some(Shutdown::BrutalKill) => {
                killed = true;
                Some(shared.kill(run, self.run, name, &path))
            }
            Some(Shutdown::Timeout(limit)) => {
                shared.outputs.push_back(Output::Stop { run });
                Some(shared.timer_after(limit, self.run, name))
            }
            Some(Shutdown::Infinity) => {
                shared.outputs.push_back(Output::Stop { run });
                None
            }
        };
        self.set_state(shared, name, State::Stopping { run, timer, killed });
        true
    }

    /// A child is down because it was told to; a temporary one is forgotten.
    pub(super) fn stopped(&mut self, shared: &mut Shared<W>, name: &Arc<str>) {
        self.set_state(shared, name, State::Stopped);
        if let Phase::Stopping { in_flight, .. } = &mut self.phase {
            in_flight.remove(name);
        }
        if let Some(child) = self.children.get_mut(name) {
            child.pid = None;
            if child.is_temporary() {
                self.remove(name);
            }
        }
    }

    /// Kills what was only asked to stop so far.
    pub(super) fn kill_stopping(&mut self, shared: &mut Shared<W>) {
        for (name, child) in &mut self.children {
            let State::Stopping { run, timer, killed: false } = child.state else { continue };
            if matches!(child.spec.kind, Kind::Worker { .. }) {
                shared.timers.cancel(timer);
                let timer = Some(shared.kill(run, self.run, name, &child.path));
                child.state = State::Stopping { run, timer, killed: true };
            }
        }
    }
}
