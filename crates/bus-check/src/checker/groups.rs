//! Messages of one group run one at a time, in the order in which they were sent.

use std::collections::HashMap;

use crate::{history::Call, rows::MessageRow};

use super::{Harm, Invariant, Report, index::Index};

/// A message of a group and what is known of its place in time.
struct Member<'a> {
    row: &'a MessageRow,
    /// It had begun by then, in microseconds; none if it never did.
    began: Option<i64>,
    first_claim: Option<&'a Call>,
    /// The call that sent it and its place in that call; none if nobody was told.
    sent: Option<(&'a Call, usize)>,
}

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut groups: HashMap<(&str, &str, &str), Vec<Member<'_>>> = HashMap::new();
    for row in &index.rows.messages {
        if let Some(group) = &row.group_key {
            groups.entry((&row.route, &row.tenant, group)).or_default().push(member(index, row));
        }
    }
    if groups.is_empty() {
        report.not_applicable.push((Invariant::Group, "no message has a group"));
    }
    for ((_, _, group), mut members) in groups {
        members.sort_by_key(|member| member.began);
        for pair in members.windows(2) {
            let [former, latter] = pair else { continue };
            if let (Some(_), Some(began)) = (former.began, latter.began)
                && former.row.done_us.is_none_or(|done| began < done)
            {
                let what = format!("ran beside {} of its group {group}", former.row.id);
                let calls: Vec<&Call> = former.first_claim.into_iter().chain(latter.first_claim).collect();
                report.add(Invariant::Group, Harm::Other, Some(latter.row.id), what, &calls);
            }
        }
        for latter in members.iter().filter(|member| member.began.is_some()) {
            for former in members.iter().filter(|member| precedes(member, latter)) {
                if former.row.done_us.is_none_or(|done| latter.began.is_some_and(|began| began < done)) {
                    let what = format!("ran before {} of its group {group}, which was sent earlier", former.row.id);
                    let sent = [former, latter].into_iter().filter_map(|member| member.sent.map(|(call, _)| call));
                    let calls: Vec<&Call> = sent.chain(latter.first_claim).collect();
                    report.add(Invariant::Group, Harm::Other, Some(latter.row.id), what, &calls);
                }
            }
        }
    }
}

fn member<'a>(index: &Index<'a>, row: &'a MessageRow) -> Member<'a> {
    let story = index.stories.get(&row.id);
    let first = story.and_then(|story| story.claims.iter().min_by_key(|claim| claim.attempt()));
    let first_claim = first.map(|claim| claim.call);
    let began = row.claimed_us.into_iter().chain(first_claim.and_then(|call| call.returned_us)).min();
    let sending = story.and_then(|story| story.sendings.iter().find(|sending| !sending.accepted.duplicate));
    let sent = sending.map(|sending| (sending.call, sending.place));
    Member { row, began, first_claim, sent }
}

/// Whether one was surely sent before the other: in the same call before it, or its call was over when the other began.
fn precedes(former: &Member<'_>, latter: &Member<'_>) -> bool {
    let (Some((one, place)), Some((other, other_place))) = (former.sent, latter.sent) else { return false };
    if std::ptr::eq(one, other) {
        return place < other_place;
    }
    one.returned_us.is_some_and(|returned| returned < other.invoked_us)
}
