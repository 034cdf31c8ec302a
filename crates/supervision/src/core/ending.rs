//! The end of a group.

use crate::{
    End, Exit,
    core::{
        CallError,
        group::{AfterStart, AfterStop, Group, Message, Phase},
        shared::Shared,
    },
};

/// Why a group is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GroupEnd {
    Asked,
    GaveUp,
    AutoShutdown,
    StartFailed { child: String, reason: String },
    Leaked,
}

impl GroupEnd {
    /// How its parent sees it. As in OTP, giving up is no error of the group: a transient group stays down then.
    pub(super) fn as_exit(&self) -> Exit {
        match self {
            Self::Asked | Self::GaveUp | Self::AutoShutdown => Exit::Shutdown,
            Self::StartFailed { child, reason } => Exit::Abnormal(format!("{child} did not start: {reason}")),
            Self::Leaked => Exit::Abnormal("a child could not be killed".to_owned()),
        }
    }

    pub(super) fn of_tree(self) -> End {
        match self {
            Self::Asked => End::Shutdown,
            Self::GaveUp => End::GaveUp,
            Self::AutoShutdown => End::AutoShutdown,
            Self::StartFailed { child, reason } => End::StartFailed { child, reason },
            Self::Leaked => End::Leaked { paths: Vec::new() },
        }
    }
}

impl<W: Clone> Group<W> {
    /// Ends the group, whatever it is in the middle of; the first reason stays.
    pub(super) fn end(&mut self, shared: &mut Shared<W>, why: GroupEnd) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(why);
        let in_the_middle_of = match &self.phase {
            Phase::Stopping { then: AfterStop::Reply { call }, .. }
            | Phase::Starting { then: AfterStart::Reply { call, .. }, .. } => Some(*call),
            _ => None,
        };
        let waiting = self.inbox.drain(..).filter_map(|message| match message {
            Message::Call { call, .. } => Some(call),
            _ => None,
        });
        for call in in_the_middle_of.into_iter().chain(waiting) {
            shared.reply(call, Err(CallError::Ended));
        }
        self.stop_these(self.order.clone(), AfterStop::End);
    }

    pub(super) fn is_over(&self) -> Option<GroupEnd> {
        self.end.clone().filter(|_| matches!(self.phase, Phase::Over))
    }
}
