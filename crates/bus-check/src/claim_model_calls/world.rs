//! What is committed, what calls under way have locked and written, and what must hold of all that is committed.

/// A message and the number of its attempt.
pub(super) type Entry = (u8, u8);

/// Stands for a claim that is there no more.
const GONE: u8 = u8::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Open,
    Done,
    Failed,
}

/// The row of a message. `attempts` counts the attempts that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) status: Status,
    pub(super) attempts: u8,
    pub(super) completions: u8,
}

/// A row of `bus.claims`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) id: u8,
    pub(super) version: u8,
    pub(super) lease: u8,
    pub(super) remaining: u8,
    pub(super) entries: Vec<Entry>,
}

/// What the first statement of a call found for one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Given {
    pub(super) entry: Entry,
    pub(super) claim: u8,
    pub(super) version: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Complete,
    Fail,
    Extend,
    Reclaim,
}

/// What a call does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum At {
    /// Waits for the row of a message, and judges it.
    LockRow(usize),
    /// Commits the rows of the messages, where an end is two transactions.
    CommitRows,
    /// Reads once more which claims its messages are in.
    ReadClaims,
    /// Counts off one of the claims that it read.
    LetGo,
    /// Counts off wherever the messages of that claim are now.
    LookElsewhere,
    /// Locks the claims that it extends, and passes over those that somebody has.
    LockClaims(u8),
    /// Extends or splits one of the claims that it has locked.
    Split(u8, usize),
    /// Writes a claim of its own for what it could not get.
    LeaseOfItsOwn,
    /// Looks what is unfinished of an expired claim.
    Scan,
    /// Locks the rows of that, and passes over those that somebody has.
    TakeRows,
    /// Looks whether anything is left of the claim.
    LeftOver,
    Commit,
}

/// A row of `bus.claims` as a call will leave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Write {
    Put(Claim),
    Delete(u8),
}

/// A transaction under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) at: At,
    pub(super) given: Vec<Given>,
    /// What was asked for, where that differs from what was given.
    pub(super) asked: Vec<Entry>,
    /// What it has judged and ends, keeps or takes back.
    pub(super) mine: Vec<Given>,
    /// What of that an end has yet to count off.
    pub(super) to_count: Vec<Given>,
    /// What an extension has yet to find the claim of.
    pub(super) to_do: Vec<Entry>,
    pub(super) rows: Vec<u8>,
    pub(super) claims: Vec<u8>,
    /// Claims that one statement locked, in its order.
    pub(super) found: Vec<u8>,
    pub(super) writes: Vec<Write>,
    /// Ticks that the extended lease will last.
    pub(super) until: u8,
    /// The claims as its first statement saw them, for an implementation that believes in it.
    pub(super) remembered: Vec<Claim>,
}

/// What a worker was promised by a claim or an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Promise {
    pub(super) entry: Entry,
    pub(super) lease: u8,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallWorld {
    pub(super) rows: Vec<Row>,
    pub(super) ready: Vec<Entry>,
    pub(super) claims: Vec<Claim>,
    /// Number of the last attempt of each message that was given out.
    pub(super) given: Vec<u8>,
    pub(super) calls: Vec<Call>,
    /// Kept apart from the tables, to judge them.
    pub(super) promises: Vec<Promise>,
    pub(super) fault: Option<&'static str>,
}

impl Call {
    pub(super) fn new(kind: Kind, at: At, given: Vec<Given>) -> Self {
        Self {
            kind,
            at,
            given,
            asked: Vec::new(),
            mine: Vec::new(),
            to_count: Vec::new(),
            to_do: Vec::new(),
            rows: Vec::new(),
            claims: Vec::new(),
            found: Vec::new(),
            writes: Vec::new(),
            until: 0,
            remembered: Vec::new(),
        }
    }

    pub(super) fn has_written(&self, claim: u8) -> bool {
        self.writes.iter().any(|write| write.id() == claim)
    }

    pub(super) fn write(&mut self, write: Write) {
        self.writes.retain(|before| before.id() != write.id());
        self.writes.push(write);
    }
}

impl Write {
    pub(super) fn id(&self) -> u8 {
        match self {
            Self::Put(claim) => claim.id,
            Self::Delete(id) => *id,
        }
    }
}

impl CallWorld {
    pub(super) fn new(messages: u8) -> Self {
        let row = Row { status: Status::Open, attempts: 0, completions: 0 };
        Self {
            rows: vec![row; usize::from(messages)],
            ready: (0..messages).map(|message| (message, 1)).collect(),
            claims: Vec::new(),
            given: vec![0; usize::from(messages)],
            calls: Vec::new(),
            promises: Vec::new(),
            fault: None,
        }
    }

    /// Whether the message is in this attempt, as far as is committed.
    pub(super) fn is_current(&self, (message, attempt): Entry) -> bool {
        let row = self.rows[usize::from(message)];
        row.status == Status::Open && row.attempts + 1 == attempt
    }

    pub(super) fn is_row_locked(&self, message: u8, by_others_than: &Call) -> bool {
        self.calls.iter().any(|call| call != by_others_than && call.rows.contains(&message))
    }

    pub(super) fn is_claim_locked(&self, claim: u8, by_others_than: Option<&Call>) -> bool {
        self.calls.iter().any(|call| Some(call) != by_others_than && call.claims.contains(&claim))
    }

    /// The claims as this call sees them, in the order of their ids.
    pub(super) fn seen_by(&self, call: &Call) -> Vec<Claim> {
        let committed = self.claims.iter().filter(|claim| !call.has_written(claim.id)).cloned();
        let own = call.writes.iter().filter_map(|write| match write {
            Write::Put(claim) => Some(claim.clone()),
            Write::Delete(_) => None,
        });
        let mut seen: Vec<Claim> = committed.chain(own).collect();
        seen.sort_unstable();
        seen
    }

    /// An id that no claim has, and that sorts behind all others.
    pub(super) fn fresh_id(&self, of: &Call) -> u8 {
        let written = self.calls.iter().chain([of]).flat_map(|call| call.writes.iter().map(Write::id));
        self.claims.iter().map(|claim| claim.id).chain(written).map(|id| id + 1).max().unwrap_or(0)
    }

    /// Two worlds that differ only by the names of claims and versions are one.
    pub(super) fn sort(&mut self) {
        let mut ids: Vec<u8> = self.claims.iter().map(|claim| claim.id).collect();
        ids.extend(self.calls.iter().flat_map(|call| call.writes.iter().map(Write::id)));
        ids.sort_unstable();
        ids.dedup();
        let mut versions: Vec<(u8, u8)> = Vec::new();
        self.for_each_name(&mut |id, version| versions.extend(version.map(|version| (*id, *version))));
        versions.sort_unstable();
        versions.dedup();
        self.for_each_name(&mut |id, version| {
            let number = (0..).zip(&ids).find(|(_, known)| *known == id).map(|(number, _)| number);
            if let Some(version) = version {
                let below = versions.iter().filter(|(of, other)| of == id && *other < *version).count();
                *version = if number.is_some() { u8::try_from(below).unwrap_or(GONE) } else { 0 };
            }
            *id = number.unwrap_or(GONE);
        });
        self.ready.sort_unstable();
        self.promises.sort_unstable();
        self.claims.sort_unstable();
        for call in &mut self.calls {
            call.claims.sort_unstable();
            call.writes.sort_unstable();
        }
        self.calls.sort_unstable();
    }

    /// Every place where a claim is named, with its version where that is named too.
    fn for_each_name(&mut self, see: &mut impl FnMut(&mut u8, Option<&mut u8>)) {
        for claim in &mut self.claims {
            see(&mut claim.id, Some(&mut claim.version));
        }
        for call in &mut self.calls {
            for given in call.given.iter_mut().chain(&mut call.mine).chain(&mut call.to_count) {
                see(&mut given.claim, Some(&mut given.version));
            }
            for claim in &mut call.remembered {
                see(&mut claim.id, Some(&mut claim.version));
            }
            for write in &mut call.writes {
                match write {
                    Write::Put(claim) => see(&mut claim.id, Some(&mut claim.version)),
                    Write::Delete(id) => see(id, None),
                }
            }
            call.claims.iter_mut().chain(&mut call.found).for_each(|id| see(id, None));
        }
    }

    pub(super) fn broken(&self) -> Option<&'static str> {
        if self.fault.is_some() {
            return self.fault;
        }
        if self.rows.iter().any(|row| row.completions > 1) {
            return Some("two completions of a message");
        }
        if self.rows.iter().any(|row| row.completions == 1 && row.status != Status::Done) {
            return Some("a completion is gone");
        }
        for claim in &self.claims {
            let unfinished = claim.entries.iter().filter(|entry| self.is_current(**entry)).count();
            if unfinished > usize::from(claim.remaining) {
                return Some("a claim counts fewer than are unfinished");
            }
        }
        for (message, row) in (0..).zip(&self.rows).filter(|(_, row)| row.status == Status::Open) {
            let current = (message, row.attempts + 1);
            let is_ready = self.ready.contains(&current);
            let is_held = self.claims.iter().any(|claim| claim.entries.contains(&current));
            if is_ready == is_held {
                return Some("a message is not in exactly one of ready and held");
            }
        }
        None
    }
}
