//! I1 and I4: what was acknowledged is there, once, and nothing is there that nobody sent.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::history::{Accepted, Call, Operation, Sent};

use super::{
    Harm, Invariant, Report,
    index::{Index, Way},
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    acknowledged_messages_are_there(index, report);
    batches_are_whole(index, report);
    keys_are_unique(index, report);
    ids_are_as_sent(index, report);
    nothing_came_from_nowhere(index, report);
}

/// I1; with retention at work a missing row is judged by I9.
fn acknowledged_messages_are_there(index: &Index<'_>, report: &mut Report) {
    if index.was_retained() {
        return;
    }
    for (id, story) in &index.stories {
        if story.is_acknowledged() && !index.by_id.contains_key(id) {
            let sent = story.sendings.iter().map(|sending| sending.call);
            let calls: Vec<&Call> = sent.chain(story.claims.iter().map(|claim| claim.call)).collect();
            report.add(Invariant::I1, Harm::Lost, Some(*id), "acknowledged, and not in the table", &calls);
        }
    }
}

/// All or none of a batch, and none of one that was refused; told by the ids that the sender chose.
fn batches_are_whole(index: &Index<'_>, report: &mut Report) {
    // what was refused may have been sent again
    let mut sent_otherwise = HashSet::new();
    for call in index.calls.iter().filter(|call| call.may_have_happened()) {
        if let Operation::Enqueue { messages } = &call.operation {
            sent_otherwise.extend(messages.iter().filter_map(|sent| sent.id));
        }
    }
    for call in index.calls.iter().filter(|call| call.answer().is_none()) {
        let Operation::Enqueue { messages } = &call.operation else { continue };
        // under a key the message may be another's
        let chosen: Vec<Uuid> = messages.iter().filter(|sent| sent.key.is_none()).filter_map(|sent| sent.id).collect();
        let there = chosen.iter().filter(|id| index.by_id.contains_key(id)).count();
        if call.is_unknown() {
            if there > 0 && there < chosen.len() && !index.was_retained() {
                let what = format!("{there} of a batch of {} are in the table", chosen.len());
                report.add(Invariant::I1, Harm::Lost, None, what, &[call]);
            }
        } else if chosen.iter().any(|id| index.by_id.contains_key(id) && !sent_otherwise.contains(id)) {
            report.add(Invariant::I4, Harm::Duplicated, None, "a refused enqueue left rows", &[call]);
        }
    }
}

fn keys_are_unique(index: &Index<'_>, report: &mut Report) {
    let mut rows: HashMap<(&str, &str), Vec<Uuid>> = HashMap::new();
    for row in &index.rows.messages {
        if let Some(key) = &row.idempotency_key {
            rows.entry((&row.tenant, key)).or_default().push(row.id);
        }
    }
    for ((tenant, key), ids) in rows.iter().filter(|(_, ids)| ids.len() > 1) {
        let what = format!("{} rows of {tenant} under key {key}", ids.len());
        report.add(Invariant::I4, Harm::Duplicated, ids.first().copied(), what, &[]);
    }
    let mut answers: HashMap<(&str, &str), Vec<(&Call, Accepted)>> = HashMap::new();
    for sending in index.stories.values().flat_map(|story| &story.sendings) {
        if let Some(key) = &sending.sent.key {
            answers.entry((&sending.sent.tenant, key)).or_default().push((sending.call, sending.accepted));
        }
    }
    for ((tenant, key), answers) in answers {
        // a key is free again when its message is gone
        let counts = |id: &Uuid| !index.was_retained() || index.by_id.contains_key(id);
        let ids: HashSet<Uuid> = answers.iter().map(|(_, accepted)| accepted.id).filter(counts).collect();
        let fresh = answers.iter().filter(|(_, accepted)| !accepted.duplicate && counts(&accepted.id)).count();
        if ids.len() > 1 || fresh > 1 {
            let calls: Vec<&Call> = answers.iter().map(|(call, _)| *call).collect();
            let what = format!("key {key} of {tenant} was answered with {} ids and as new {fresh} times", ids.len());
            report.add(Invariant::I4, Harm::Duplicated, ids.into_iter().next(), what, &calls);
        }
    }
}

fn ids_are_as_sent(index: &Index<'_>, report: &mut Report) {
    for (id, story) in &index.stories {
        let mut fresh = Vec::new();
        for sending in &story.sendings {
            if sending.accepted.duplicate {
                if sending.sent.key.is_none() {
                    let what = "a message without a key was taken for another";
                    report.add(Invariant::I4, Harm::Lost, Some(*id), what, &[sending.call]);
                }
                continue;
            }
            fresh.push(sending.call);
            if sending.sent.id.is_some_and(|chosen| chosen != *id) {
                let what = "the sender's id was not kept";
                report.add(Invariant::I4, Harm::Other, Some(*id), what, &[sending.call]);
            }
        }
        if fresh.len() > 1 {
            report.add(Invariant::I4, Harm::Lost, Some(*id), "one id was given to several messages", &fresh);
        }
    }
    let mut seen = HashSet::new();
    for row in &index.rows.messages {
        if !seen.insert(row.id) {
            report.add(Invariant::I4, Harm::Duplicated, Some(row.id), "the id stands in the table twice", &[]);
        }
    }
}

/// What a sender without an answer may have left.
#[derive(Default)]
struct Possible<'a> {
    ids: HashSet<Uuid>,
    keys: HashSet<(&'a str, &'a str)>,
    /// Messages without id and key, by tenant.
    nameless: HashMap<&'a str, usize>,
}

impl<'a> Possible<'a> {
    fn add(&mut self, sent: &'a Sent) {
        self.ids.extend(sent.id);
        if let Some(key) = &sent.key {
            self.keys.insert((&sent.tenant, key));
        } else if sent.id.is_none() {
            *self.nameless.entry(&sent.tenant).or_default() += 1;
        }
    }
}

fn nothing_came_from_nowhere(index: &Index<'_>, report: &mut Report) {
    let mut possible = Possible::default();
    for call in index.calls.iter().filter(|call| call.is_unknown()) {
        if let Operation::Enqueue { messages } = &call.operation {
            messages.iter().for_each(|sent| possible.add(sent));
        }
    }
    for row in &index.rows.messages {
        let is_acknowledged =
            index.stories.get(&row.id).is_some_and(|story| !story.sendings.is_empty() || !story.replays.is_empty());
        let is_follow_up = row.parent_id.and_then(|parent| index.stories.get(&parent)).is_some_and(|story| {
            let sends = |way: &Way<'_>| matches!(way, Way::Complete(ending) if ending.follow_ups > 0);
            story.ends.iter().any(|end| end.may_count() && sends(&end.way))
        });
        let is_replay = row.replay_of.is_some_and(|dead_letter| index.is_replay(dead_letter));
        let key = row.idempotency_key.as_deref();
        let is_possible = possible.ids.contains(&row.id)
            || key.is_some_and(|key| possible.keys.contains(&(row.tenant.as_str(), key)));
        if is_acknowledged || is_follow_up || is_replay || is_possible {
            continue;
        }
        match possible.nameless.get_mut(row.tenant.as_str()) {
            Some(left) if *left > 0 && key.is_none() => *left -= 1,
            _ => report.add(Invariant::I4, Harm::Duplicated, Some(row.id), "nobody sent this message", &[]),
        }
    }
}
