//! The rules of a pool without I/O: wishes, ends and the time go in, members to make, to lend and to end come out.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::waiting_room::{Seat, Ticket, WaitingRoom};

use super::{
    Invalid, MemberId, Picker, Settings,
    member::{Member, State},
};

/// What the driver shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Make and warm up this member, then say [`Core::warmed`] or [`Core::failed`].
    Start(MemberId),
    /// End this member; nobody uses it any more.
    Stop(MemberId),
    /// Tell whoever waits with this ticket that it has this member.
    Grant(Ticket, MemberId),
    /// Tell whoever waits with this ticket that it lost its place.
    Displace(Ticket),
}

/// What somebody who asks is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Has this member until [`Core::give_back`].
    Granted(MemberId),
    /// Waits until [`Output::Grant`] or [`Output::Displace`].
    Waits(Ticket),
    /// As many wait as may.
    Full,
}

/// Why somebody got no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Everyone is busy and as many wait as may.
    #[error("Pool is full")]
    Full,
    /// It waited as long as it may.
    #[error("Pool had no member free for {} ms", waited.as_millis())]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },
    /// It gave its place to a tenant that had fewer.
    #[error("Place went to a tenant that had fewer")]
    Displaced,
    /// The pool has ended.
    #[error("Pool is closed")]
    Closed,
}

/// How hard a pool is pressed, for those who send work to it and for the autoscaler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Leases at this moment.
    pub leases: usize,
    /// Leases that the members that are ready can hold.
    pub capacity: usize,
    /// How many wait.
    pub waiting: usize,
    /// How many may wait.
    pub seats: usize,
}

/// The rules of one pool. Times are of one clock and must not go back.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    target: usize,
    members: BTreeMap<MemberId, Member>,
    next_member: u64,
    room: WaitingRoom,
    picker: Picker,
    failures_in_a_row: u32,
    /// No member is made before this.
    not_before: Duration,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A pool that asks at once for its first members; the seed decides its draws.
    ///
    /// # Errors
    /// The first rule that the settings break.
    pub fn new(settings: Settings, seed: u64) -> Result<Self, Invalid> {
        settings.validate()?;
        let mut core = Self {
            target: settings.target,
            members: BTreeMap::new(),
            next_member: 0,
            room: WaitingRoom::new(settings.waiting),
            picker: Picker::new(settings.strategy, seed),
            failures_in_a_row: 0,
            not_before: Duration::ZERO,
            outputs: VecDeque::new(),
            settings,
        };
        core.settle(Duration::ZERO);
        Ok(core)
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`tick`](Self::tick) is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let retry = (self.members_staying() < self.wanted()).then_some(self.not_before);
        let idle = (self.members_staying() > self.target && self.room.waiting() == 0)
            .then(|| self.members.values().filter(|member| member.is_idle()).map(|member| member.idle_since).min())
            .flatten()
            .map(|since| since.saturating_add(self.settings.overflow_idle));
        [retry, idle].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.settle(now);
    }

    /// How many members it shall have; answers what it will have within its bounds.
    pub fn set_target(&mut self, now: Duration, target: usize) -> usize {
        self.target = target.clamp(self.settings.min, self.settings.max);
        self.shrink();
        self.settle(now);
        self.target
    }

    /// A member is warm and may work; false if it is not wanted any more.
    pub fn warmed(&mut self, now: Duration, id: MemberId) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        self.failures_in_a_row = 0;
        if member.state == State::Warming {
            member.state = State::Ready;
            member.idle_since = now;
        }
        self.settle(now);
        true
    }

    /// A member could not be made, or broke; another is made after a pause that grows with each failure in a row.
    pub fn failed(&mut self, now: Duration, id: MemberId) {
        if self.members.remove(&id).is_none() {
            return;
        }
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.not_before = now.saturating_add(self.settings.retry_pause(self.failures_in_a_row));
        self.settle(now);
    }

    /// Somebody of a tenant wants a member.
    pub fn ask(&mut self, now: Duration, tenant: &str) -> Answer {
        if self.room.inside(tenant) < self.settings.quota
            && let Some(id) = self.pick()
        {
            self.lend(id);
            self.room.enter(tenant);
            return Answer::Granted(id);
        }
        let ticket = match self.room.sit(tenant) {
            Seat::Full => return Answer::Full,
            Seat::Taken(ticket) => ticket,
            Seat::TakenFrom { ticket, displaced } => {
                self.outputs.push_back(Output::Displace(displaced));
                ticket
            }
        };
        self.settle(now);
        Answer::Waits(ticket)
    }

    /// Somebody waits no longer; false if it was granted a member or displaced meanwhile.
    pub fn give_up(&mut self, tenant: &str, ticket: Ticket) -> bool {
        self.room.stand_up(tenant, ticket)
    }

    /// A lease has ended.
    pub fn give_back(&mut self, now: Duration, id: MemberId, tenant: &str) {
        self.room.leave(tenant);
        if let Some(member) = self.members.get_mut(&id) {
            member.load = member.load.saturating_sub(1);
            member.idle_since = now;
            if member.load == 0 && member.state == State::Draining {
                self.end(id);
            }
        }
        self.settle(now);
    }

    /// How hard it is pressed.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let ready = self.members.values().filter(|member| member.state == State::Ready).count();
        Pressure {
            leases: self.members.values().map(|member| member.load).sum(),
            capacity: ready.saturating_mul(self.settings.per_member),
            waiting: self.room.waiting(),
            seats: self.room.seats(),
        }
    }

    /// Members that are there or being made, those that are leaving aside.
    #[must_use]
    pub fn members_staying(&self) -> usize {
        self.members.values().filter(|member| member.is_staying()).count()
    }

    fn pick(&mut self) -> Option<MemberId> {
        let per_member = self.settings.per_member;
        let free: Vec<(u64, usize)> = self
            .members
            .iter()
            .filter(|(_, member)| member.state == State::Ready && member.load < per_member)
            .map(|(id, member)| (id.0, member.load))
            .collect();
        let place = self.picker.pick(&free)?;
        free.get(place).map(|(id, _)| MemberId(*id))
    }

    fn lend(&mut self, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.load += 1;
        }
    }

    /// Grants what can be granted, then makes and ends members until their number is right.
    fn settle(&mut self, now: Duration) {
        self.grant();
        self.end_idle_helpers(now);
        if now < self.not_before {
            return;
        }
        while self.members_staying() < self.wanted() {
            let id = MemberId(self.next_member);
            self.next_member += 1;
            self.members.insert(id, Member::new(now));
            self.outputs.push_back(Output::Start(id));
        }
    }

    fn grant(&mut self) {
        let quota = self.settings.quota;
        while self.room.waiting() > 0 {
            let Some(id) = self.pick() else { return };
            let Some((ticket, _tenant)) = self.room.call_next(|inside| inside < quota) else { return };
            self.lend(id);
            self.outputs.push_back(Output::Grant(ticket, id));
        }
    }

    /// The target, and a helper for each who waits, as far as they are allowed. Whoever waits because of a quota is
    /// not helped by more members.
    fn wanted(&self) -> usize {
        let has_free =
            self.members.values().any(|member| member.state == State::Ready && member.load < self.settings.per_member);
        if has_free || self.room.waiting() == 0 {
            return self.target;
        }
        let busy = self.members.values().filter(|member| member.state == State::Ready).count();
        let helpers = self.room.waiting().div_ceil(self.settings.per_member);
        (busy + helpers).clamp(self.target, self.target.saturating_add(self.settings.overflow))
    }

    fn end_idle_helpers(&mut self, now: Duration) {
        let idle_for = self.settings.overflow_idle;
        while self.members_staying() > self.target && self.room.waiting() == 0 {
            let longest_idle = self
                .members
                .iter()
                .filter(|(_, member)| member.is_idle() && now.saturating_sub(member.idle_since) >= idle_for)
                .min_by_key(|(id, member)| (member.idle_since, std::cmp::Reverse(**id)))
                .map(|(id, _)| *id);
            let Some(id) = longest_idle else { return };
            self.end(id);
        }
    }

    /// Lets those go first who are not warm yet, then those who have least to do.
    fn shrink(&mut self) {
        while self.members_staying() > self.target {
            let least = self
                .members
                .iter()
                .filter(|(_, member)| member.is_staying())
                .min_by_key(|(id, member)| (member.state != State::Warming, member.load, std::cmp::Reverse(**id)))
                .map(|(id, member)| (*id, member.load));
            match least {
                Some((id, 0)) => self.end(id),
                Some((id, _)) => {
                    if let Some(member) = self.members.get_mut(&id) {
                        member.state = State::Draining;
                    }
                }
                None => return,
            }
        }
    }

    fn end(&mut self, id: MemberId) {
        self.members.remove(&id);
        self.outputs.push_back(Output::Stop(id));
    }
}
