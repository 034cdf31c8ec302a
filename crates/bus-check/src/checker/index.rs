//! A history turned over: what it says of each message, and what is common to all.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    history::{Accepted, Answer, Call, Ending, Held, Operation, Sent, Taken},
    rows::{AttemptRow, EventRow, MessageRow, Rows},
};

/// An acknowledged sending.
pub(super) struct Sending<'a> {
    pub(super) call: &'a Call,
    pub(super) sent: &'a Sent,
    /// Its place in the call.
    pub(super) place: usize,
    pub(super) accepted: Accepted,
}

/// A claim that its holder knows of.
pub(super) struct Claiming<'a> {
    pub(super) call: &'a Call,
    pub(super) holder: &'a str,
    pub(super) lease_ms: i64,
    pub(super) taken: &'a Taken,
}

impl Claiming<'_> {
    pub(super) fn attempt(&self) -> i16 {
        self.taken.held.attempt
    }
}

/// How a holder wanted to end an attempt.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    Complete(&'a Ending),
    Fail { retriable: bool, again: Option<bool> },
    Release,
}

/// What is known of an end that was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    Rejected,
    Unknown,
}

/// An end that a holder asked for.
pub(super) struct End<'a> {
    pub(super) call: &'a Call,
    pub(super) holder: &'a str,
    pub(super) attempt: i16,
    pub(super) way: Way<'a>,
    pub(super) verdict: Verdict,
}

impl End<'_> {
    pub(super) fn is_accepted(&self) -> bool {
        self.verdict == Verdict::Accepted
    }

    pub(super) fn may_count(&self) -> bool {
        self.verdict != Verdict::Rejected
    }

    pub(super) fn completes(&self) -> bool {
        matches!(self.way, Way::Complete(_))
    }
}

/// An extension that was granted or may have been.
pub(super) struct Extension<'a> {
    pub(super) call: &'a Call,
    pub(super) held: &'a [Held],
    pub(super) lease_ms: i64,
}

/// What the history says of one message.
#[derive(Default)]
pub(super) struct Story<'a> {
    pub(super) sendings: Vec<Sending<'a>>,
    pub(super) claims: Vec<Claiming<'a>>,
    pub(super) ends: Vec<End<'a>>,
    pub(super) replays: Vec<&'a Call>,
}

impl Story<'_> {
    /// Whether somebody was told that the message is there.
    pub(super) fn is_acknowledged(&self) -> bool {
        !(self.sendings.is_empty() && self.claims.is_empty() && self.replays.is_empty())
    }

    /// Whether the client library refused it by itself: what it cannot read it claims and fails without showing it.
    pub(super) fn was_unreadable(&self, row: &MessageRow) -> bool {
        let says_so = row.error.as_deref().is_some_and(|error| error.starts_with("payload cannot be read"));
        says_so && row.status == "failed" && row.attempts == 1 && self.claims.is_empty()
    }
}

/// Everything, by what the checks ask for.
pub(super) struct Index<'a> {
    pub(super) calls: &'a [Call],
    pub(super) rows: &'a Rows,
    pub(super) by_id: HashMap<Uuid, &'a MessageRow>,
    pub(super) stories: HashMap<Uuid, Story<'a>>,
    pub(super) events: HashMap<Uuid, Vec<&'a EventRow>>,
    pub(super) children: HashMap<Uuid, usize>,
    /// Cancels that happened or may have, by task.
    pub(super) cancels: HashMap<Uuid, Vec<&'a Call>>,
    /// Extensions that happened or may have, by holder.
    pub(super) extensions: HashMap<&'a str, Vec<Extension<'a>>>,
    /// Claims of which their holders do not know what they gave them, by holder.
    pub(super) in_the_dark: HashMap<&'a str, Vec<&'a Call>>,
    /// Claims that ended without a completion, as the database notes them.
    noted: HashMap<Held, &'a AttemptRow>,
    /// Retention that removed something or may have.
    pub(super) retentions: Vec<&'a Call>,
    /// Whether holders were declared gone, by name or by a successor.
    pub(super) evictions: Vec<&'a Call>,
}

impl<'a> Index<'a> {
    pub(super) fn new(calls: &'a [Call], rows: &'a Rows) -> Self {
        let mut index = Self {
            calls,
            rows,
            by_id: rows.messages.iter().map(|row| (row.id, row)).collect(),
            stories: HashMap::new(),
            events: HashMap::new(),
            children: HashMap::new(),
            cancels: HashMap::new(),
            extensions: HashMap::new(),
            in_the_dark: HashMap::new(),
            noted: rows.attempts.iter().map(noted).collect(),
            retentions: Vec::new(),
            evictions: Vec::new(),
        };
        for event in &rows.events {
            index.events.entry(event.message_id).or_default().push(event);
        }
        for parent in rows.messages.iter().filter_map(|row| row.parent_id) {
            *index.children.entry(parent).or_default() += 1;
        }
        for call in calls {
            index.add(call);
        }
        index
    }

    pub(super) fn was_retained(&self) -> bool {
        !self.retentions.is_empty()
    }

    pub(super) fn is_replay(&self, dead_letter: Uuid) -> bool {
        self.calls.iter().any(|call| {
            call.may_have_happened()
                && matches!(call.operation, Operation::Replay { dead_letter: id } if id == dead_letter)
        })
    }

    /// Whether a holder may have been given something by then without learning of it.
    pub(super) fn may_not_know(&self, holder: &str, by_us: i64) -> bool {
        self.in_the_dark.get(holder).is_some_and(|claims| claims.iter().any(|call| call.invoked_us <= by_us))
    }

    /// Whether an attempt that nobody tells of is that of a claim whose answer was lost.
    pub(super) fn may_have_been_lost(&self, row: &MessageRow, attempt: i16) -> bool {
        let held = Held { id: row.id, attempt };
        match (self.noted.get(&held), &row.claimed_by) {
            (Some(noted), _) => self.may_not_know(&noted.holder, noted.started_us.unwrap_or(i64::MAX)),
            (None, Some(holder)) if attempt == row.attempts => {
                self.may_not_know(holder, row.claimed_us.unwrap_or(i64::MAX))
            }
            (None, _) => false,
        }
    }

    fn story(&mut self, id: Uuid) -> &mut Story<'a> {
        self.stories.entry(id).or_default()
    }

    fn add(&mut self, call: &'a Call) {
        match &call.operation {
            Operation::Enqueue { messages } => self.add_sendings(call, messages),
            Operation::Claim { holder, lease_ms } => self.add_claims(call, holder, *lease_ms),
            Operation::Extend { holder, held, lease_ms } if call.may_have_happened() => {
                let extension = Extension { call, held, lease_ms: *lease_ms };
                self.extensions.entry(holder).or_default().push(extension);
            }
            Operation::Complete { holder, ended } => {
                let mut still = match call.answer() {
                    Some(Answer::Still(still)) => still.clone(),
                    _ => Vec::new(),
                };
                for ending in ended {
                    // asked twice in one call, each answer counts for one
                    let named = still.iter().position(|id| *id == ending.held.id);
                    let verdict = named.map_or(verdict_without(call), |position| {
                        still.swap_remove(position);
                        Verdict::Accepted
                    });
                    self.add_end(call, holder, ending.held, Way::Complete(ending), verdict);
                }
            }
            Operation::Fail { holder, held, retriable } => {
                let (again, verdict) = match call.answer() {
                    Some(Answer::Settled(Some(again))) => (Some(*again), Verdict::Accepted),
                    _ => (None, verdict_without(call)),
                };
                self.add_end(call, holder, *held, Way::Fail { retriable: *retriable, again }, verdict);
            }
            Operation::Release { holder, held } => {
                let verdict = match call.answer() {
                    Some(Answer::Count(0)) => Verdict::Rejected,
                    Some(Answer::Count(count)) if usize::try_from(*count) == Ok(held.len()) => Verdict::Accepted,
                    // some of them, and nobody can tell which
                    Some(Answer::Count(_)) => Verdict::Unknown,
                    _ => verdict_without(call),
                };
                for held in held {
                    self.add_end(call, holder, *held, Way::Release, verdict);
                }
            }
            Operation::Cancel { root } if call.may_have_happened() => self.cancels.entry(*root).or_default().push(call),
            Operation::Replay { .. } => {
                if let Some(Answer::Replayed(fresh)) = call.answer() {
                    self.story(*fresh).replays.push(call);
                }
            }
            Operation::Retain { .. } if call.answer() != Some(&Answer::Count(0)) && call.may_have_happened() => {
                self.retentions.push(call);
            }
            Operation::RequeueHeld { .. } | Operation::Register { .. } if call.may_have_happened() => {
                self.evictions.push(call);
            }
            _ => {}
        }
    }

    fn add_sendings(&mut self, call: &'a Call, messages: &'a [Sent]) {
        let Some(Answer::Enqueued(accepted)) = call.answer() else { return };
        for (place, (sent, accepted)) in messages.iter().zip(accepted).enumerate() {
            self.story(accepted.id).sendings.push(Sending { call, sent, place, accepted: *accepted });
        }
    }

    fn add_claims(&mut self, call: &'a Call, holder: &'a str, lease_ms: i64) {
        if call.is_unknown() {
            self.in_the_dark.entry(holder).or_default().push(call);
        }
        let Some(Answer::Taken(all)) = call.answer() else { return };
        for taken in all {
            self.story(taken.held.id).claims.push(Claiming { call, holder, lease_ms, taken });
        }
    }

    fn add_end(&mut self, call: &'a Call, holder: &'a str, held: Held, way: Way<'a>, verdict: Verdict) {
        self.story(held.id).ends.push(End { call, holder, attempt: held.attempt, way, verdict });
    }
}

fn noted(row: &AttemptRow) -> (Held, &AttemptRow) {
    (Held { id: row.id, attempt: row.attempt }, row)
}

/// Of a call whose answer does not name the message.
fn verdict_without(call: &Call) -> Verdict {
    if call.is_unknown() { Verdict::Unknown } else { Verdict::Rejected }
}
