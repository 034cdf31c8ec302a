//! The bus in memory: what each message is, where it stands, and how that changes. It knows no clock: a delay, a lease or a
//! time to live is over when an operation says so.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::model::operations::Sent;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    Short,
    Extended,
    Passed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In line behind another of its group, or for others to end.
    Waiting,
    Delayed,
    Ready {
        due: i64,
        chunk: u64,
    },
    Claimed {
        holder: usize,
        lease: Lease,
        /// A claim of many leaves the rows as they were until it is extended.
        marked: bool,
    },
    Done,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeToLive {
    Endless,
    Ahead,
    Passed,
    /// The chore has seen it; one that was claimed then goes on.
    Swept,
}

#[derive(Debug)]
pub(super) struct Message {
    pub id: Uuid,
    pub tenant: usize,
    pub priority: i16,
    pub group: Option<u8>,
    pub created_us: i64,
    /// The first message of its task.
    pub task: usize,
    pub replay_of: Option<usize>,
    pub awaits: BTreeSet<usize>,
    /// Not to be claimed before its delay is over.
    pub later: bool,
    pub time_to_live: TimeToLive,
    pub attempts: i16,
    pub released: i16,
    pub state: State,
}

impl Message {
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Done | State::Failed | State::Cancelled)
    }

    pub(super) fn claimed(&self) -> bool {
        matches!(self.state, State::Claimed { .. })
    }

    pub(super) fn outlived(&self) -> bool {
        matches!(self.time_to_live, TimeToLive::Passed | TimeToLive::Swept)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub message: usize,
    pub attempt: i16,
    pub holder: usize,
}

/// A message with what it is sent with.
pub(super) struct Planned {
    pub sent: Sent,
    pub id: Uuid,
    pub awaits: Vec<Uuid>,
}

pub(super) struct Model {
    /// In the order of sending.
    pub messages: Vec<Message>,
    /// Every claim ever made.
    pub claims: Vec<Claim>,
    pub paused: bool,
    pub limit: Option<u32>,
    pub aging_ms: u32,
    pub(super) lines: BTreeMap<(usize, u8), Vec<usize>>,
    keys: BTreeMap<(usize, u8), usize>,
    chunks: u64,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            messages: Vec::new(),
            claims: Vec::new(),
            paused: false,
            limit: None,
            aging_ms: 10_000,
            lines: BTreeMap::new(),
            keys: BTreeMap::new(),
            chunks: 0,
        }
    }

    pub(super) fn number_of(&self, id: Uuid) -> Option<usize> {
        self.messages.iter().position(|message| message.id == id)
    }

    pub(super) fn numbers(&self, fits: impl Fn(&Message) -> bool) -> Vec<usize> {
        (0..self.messages.len()).filter(|number| fits(&self.messages[*number])).collect()
    }

    /// Gives a batch its ids, which grow in its order, and turns places into messages to wait for.
    pub(super) fn plan(&self, batch: &[Sent]) -> Vec<Planned> {
        let mut planned: Vec<Planned> = Vec::new();
        for sent in batch {
            let before = self.messages.iter().filter(|message| message.tenant == sent.tenant).map(|message| message.id);
            let with_it = planned.iter().filter(|mate| mate.sent.tenant == sent.tenant).map(|mate| mate.id);
            let candidates: Vec<Uuid> = before.chain(with_it).collect();
            let awaits = if candidates.is_empty() {
                Vec::new()
            } else {
                // the newest are more likely to be unfinished
                sent.awaits.iter().map(|place| candidates[candidates.len() - 1 - place % candidates.len()]).collect()
            };
            planned.push(Planned { sent: sent.clone(), id: Uuid::now_v7(), awaits });
        }
        planned
    }

    /// Answers, for each, which message there is now and whether it was there before.
    pub(super) fn send(&mut self, batch: &[Planned], created_us: &BTreeMap<Uuid, i64>) -> Vec<(Uuid, bool)> {
        let mut owners: BTreeMap<Uuid, usize> = BTreeMap::new();
        let mut fresh = Vec::new();
        for planned in batch {
            let sent = &planned.sent;
            let number = self.messages.len();
            let owner = sent.key.map_or(number, |key| *self.keys.entry((sent.tenant, key)).or_insert(number));
            owners.insert(planned.id, owner);
            if owner != number {
                continue;
            }
            let awaited =
                planned.awaits.iter().map(|id| owners.get(id).copied().or_else(|| self.number_of(*id)).unwrap());
            let awaits = awaited.filter(|awaited| !self.messages[*awaited].ended()).collect();
            self.messages.push(Message {
                id: planned.id,
                tenant: sent.tenant,
                priority: sent.priority,
                group: sent.group,
                created_us: created_us.get(&planned.id).copied().unwrap_or_default(),
                task: number,
                replay_of: None,
                awaits,
                later: sent.delayed,
                time_to_live: if sent.expires { TimeToLive::Ahead } else { TimeToLive::Endless },
                attempts: 0,
                released: 0,
                state: State::Waiting,
            });
            fresh.push(number);
        }
        self.enter(&fresh);
        batch
            .iter()
            .map(|planned| (planned, owners[&planned.id]))
            .map(|(planned, owner)| {
                let id = self.messages[owner].id;
                (id, id != planned.id)
            })
            .collect()
    }

    /// Puts new messages where they belong: those of groups in line, those that nothing holds up where they may be claimed.
    pub(super) fn enter(&mut self, fresh: &[usize]) {
        let (grouped, alone): (Vec<usize>, Vec<usize>) =
            fresh.iter().partition(|number| self.messages[**number].group.is_some());
        self.place(&alone);
        for number in &grouped {
            let message = &self.messages[*number];
            let line = message.group.map(|group| (message.tenant, group));
            line.into_iter().for_each(|line| self.lines.entry(line).or_default().push(*number));
        }
        let heads: Vec<usize> = grouped.into_iter().filter(|number| !self.behind(*number)).collect();
        self.place(&heads);
    }

    pub(super) fn behind(&self, number: usize) -> bool {
        self.lines.values().any(|line| line.iter().position(|member| *member == number).is_some_and(|place| place > 0))
    }

    /// Puts messages that neither stand behind others nor wait for them where they may be claimed, now or later.
    pub(super) fn place(&mut self, numbers: &[usize]) {
        let mut now = Vec::new();
        for number in numbers {
            let message = &mut self.messages[*number];
            if !message.awaits.is_empty() {
                message.state = State::Waiting;
            } else if message.later {
                message.state = State::Delayed;
            } else {
                now.push(*number);
            }
        }
        self.make_ready(&now);
    }

    /// Those of one kind that become ready together stand together, at the place of the oldest.
    pub(super) fn make_ready(&mut self, numbers: &[usize]) {
        let mut chunks: BTreeMap<(usize, i16, i16), Vec<usize>> = BTreeMap::new();
        for number in numbers {
            let message = &self.messages[*number];
            chunks.entry((message.tenant, message.priority, message.attempts)).or_default().push(*number);
        }
        for ((_, priority, _), members) in chunks {
            self.chunks += 1;
            let oldest = members.iter().map(|number| self.messages[*number].created_us).min().unwrap_or_default();
            let due = oldest + i64::from(priority) * 1000 * i64::from(self.aging_ms);
            for number in members {
                self.messages[number].state = State::Ready { due, chunk: self.chunks };
            }
        }
    }

    /// What the end of messages sets free: those that waited for them, then the next of their groups.
    pub(super) fn end(&mut self, ended: &[usize], state: State) {
        for number in ended {
            self.messages[*number].state = state;
            self.messages[*number].awaits.clear();
        }
        let waiting = self.numbers(|message| !message.awaits.is_empty());
        for number in &waiting {
            self.messages[*number].awaits.retain(|awaited| !ended.contains(awaited));
        }
        let free: Vec<usize> = waiting
            .into_iter()
            .filter(|number| self.messages[*number].awaits.is_empty() && !self.behind(*number))
            .collect();
        self.place(&free);
        for number in ended {
            let was_head = !self.behind(*number);
            let message = &self.messages[*number];
            let Some(line) = message.group.and_then(|group| self.lines.get_mut(&(message.tenant, group))) else {
                continue;
            };
            line.retain(|member| member != number);
            if let Some(next) = line.first().copied().filter(|_| was_head) {
                self.place(&[next]);
            }
        }
    }
}
