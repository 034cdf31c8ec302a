//! What the end of a child leads to.

use std::sync::Arc;

use crate::{
    AutoShutdown, Exit, Happened, Restart, Strategy,
    core::{
        child::State,
        ending::GroupEnd,
        group::{AfterStop, Group},
        shared::Shared,
    },
};

impl<W: Clone> Group<W> {
    pub(super) fn child_ended_by_itself(&mut self, shared: &mut Shared<W>, name: &Arc<str>, exit: &Exit) {
        let Some(child) = self.children.get(name) else { return };
        let again = match child.spec.restart {
            _ if matches!(exit, Exit::Final(_)) => false,
            Restart::Permanent => true,
            Restart::Transient => !exit.is_clean(),
            Restart::Temporary => false,
        };
        if again {
            self.restart(shared, name);
            return;
        }
        let is_significant = child.spec.significant;
        self.stopped(shared, name);
        if is_significant && self.is_time_for_auto_shutdown() {
            shared.event(&self.path, Happened::AutoShutdown { child: name.to_string() });
            self.end(shared, GroupEnd::AutoShutdown);
        }
    }

    fn is_time_for_auto_shutdown(&self) -> bool {
        let is_left = || self.children.values().any(|child| child.spec.significant && child.state != State::Stopped);
        match self.spec.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => !is_left(),
        }
    }

    /// Restarts a child that is down, with a pause if it has one, unless that would be one restart too many.
    pub(super) fn restart(&mut self, shared: &mut Shared<W>, name: &Arc<str>) {
        let (intensity, period) = (self.spec.intensity, self.spec.period);
        if !self.window.allows(shared.now, intensity, period) {
            shared.event(&self.path, Happened::GaveUp { child: name.to_string(), intensity, period });
            self.stopped(shared, name);
            self.end(shared, GroupEnd::GaveUp);
            return;
        }
        // from here on it counts as one that will run again, whatever comes between
        self.set_state(shared, name, State::Restarting { timer: None });
        let has_pause = self.children.get(name).is_some_and(|child| child.spec.backoff.is_some());
        let name = Arc::clone(name);
        let then = if has_pause { AfterStop::Pause { name } } else { AfterStop::Restart { name } };
        self.stop_before_restart(then);
    }

    /// Stops whoever is restarted together with a child.
    pub(super) fn stop_before_restart(&mut self, then: AfterStop) {
        let names = match &then {
            AfterStop::Restart { name } | AfterStop::Pause { name } => self.restarted_with(name),
            AfterStop::Reply { .. } | AfterStop::End => Vec::new(),
        };
        self.stop_these(names, then);
    }

    /// Who is restarted together with a child, in the order of their start; the child itself is not among them.
    pub(super) fn restarted_with(&self, name: &Arc<str>) -> Vec<Arc<str>> {
        let others = self.order.iter().filter(|other| *other != name);
        match self.spec.strategy {
            Strategy::OneForOne => Vec::new(),
            Strategy::OneForAll => others.cloned().collect(),
            Strategy::RestForOne => self.order.iter().skip_while(|other| *other != name).skip(1).cloned().collect(),
        }
    }

    pub(super) fn pause(&mut self, shared: &mut Shared<W>, name: &Arc<str>) {
        let Some(child) = self.children.get_mut(name) else { return };
        let Some(backoff) = child.spec.backoff else { return };
        let pause = shared.chance.pause(&backoff, child.history.early_ends);
        child.history.early_ends = child.history.early_ends.saturating_add(1);
        shared.event(&child.path, Happened::RestartPlanned { pause });
        let timer = Some(shared.timer_after(pause, self.run, name));
        self.set_state(shared, name, State::Restarting { timer });
    }
}
