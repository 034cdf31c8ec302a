//! I3, first half: an attempt has one holder, and nobody gets a message that another holds.

use std::collections::BTreeMap;

use crate::history::{Call, Operation};

use super::{
    Harm, Invariant, Report,
    index::{Claiming, Index, Story},
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    for (id, story) in &index.stories {
        let mut by_attempt: BTreeMap<i16, Vec<&Claiming<'_>>> = BTreeMap::new();
        for claim in &story.claims {
            by_attempt.entry(claim.attempt()).or_default().push(claim);
        }
        for (attempt, claims) in by_attempt.iter().filter(|(_, claims)| claims.len() > 1) {
            let calls: Vec<&Call> = claims.iter().map(|claim| claim.call).collect();
            let what = format!("attempt {attempt} was given out {} times", claims.len());
            report.add(Invariant::I3, Harm::Other, Some(*id), what, &calls);
        }
        let firsts: Vec<&Claiming<'_>> = by_attempt.values().filter_map(|claims| claims.first().copied()).collect();
        for pair in firsts.windows(2) {
            let [former, latter] = pair else { continue };
            if overlaps(index, story, former, latter) {
                let what = format!("attempt {} began while attempt {} was leased", latter.attempt(), former.attempt());
                report.add(Invariant::I3, Harm::Other, Some(*id), what, &[former.call, latter.call]);
            }
        }
        let Some(row) = index.by_id.get(id).filter(|row| row.has_ended()) else { continue };
        let last = by_attempt.keys().next_back().copied().unwrap_or(0);
        let nobody_knows =
            |attempt: &i16| !by_attempt.contains_key(attempt) && !index.may_have_been_lost(row, *attempt);
        let unseen = (1..=row.attempts).filter(nobody_knows).count();
        // neither a cancel nor the end of its time counts up for those who are just taking it
        let has_expired = row.status == "failed" && row.expires_us.is_some_and(|expires| row.done_us >= Some(expires));
        if last > row.attempts && row.status != "cancelled" && !has_expired {
            let what = format!("attempt {last} was given out, the row counts {}", row.attempts);
            report.add(Invariant::I3, Harm::Other, Some(*id), what, &[]);
        // one whose time passes in the moment of a claim counts as taken and is not handed out
        } else if unseen > usize::from(has_expired) && story.is_acknowledged() && !story.was_unreadable(row) {
            let what = format!("{unseen} of {} attempts were given to nobody", row.attempts);
            let mut calls: Vec<&Call> = story.claims.iter().map(|claim| claim.call).collect();
            calls.extend(story.ends.iter().map(|end| end.call));
            report.add(Invariant::I3, Harm::Other, Some(*id), what, &calls);
        }
    }
}

/// Whether the latter claim came back before the lease of the former can have ended, and nothing ended it earlier.
fn overlaps(index: &Index<'_>, story: &Story<'_>, former: &Claiming<'_>, latter: &Claiming<'_>) -> bool {
    let Some(latter_returned) = latter.call.returned_us else { return false };
    let was_ended = story
        .ends
        .iter()
        .any(|end| end.attempt == former.attempt() && end.may_count() && end.call.invoked_us < latter_returned);
    let was_evicted = index.evictions.iter().any(|call| {
        let concerns = match &call.operation {
            Operation::RequeueHeld { holder } => holder == former.holder,
            Operation::Register { name, slot } => former.holder.starts_with(&format!("{name}/{slot}#")),
            _ => false,
        };
        concerns && call.invoked_us < latter_returned
    });
    if was_ended || was_evicted {
        return false;
    }
    // an extension may also shorten a lease, so the shortest of those that may have counted is what is sure
    let mut sure_until = former.call.invoked_us + former.lease_ms * 1000;
    let mut known: Vec<_> = index.extensions.get(former.holder).map_or(&[][..], Vec::as_slice).iter().collect();
    known
        .retain(|extension| extension.held.contains(&former.taken.held) && extension.call.invoked_us < latter_returned);
    known.sort_by_key(|extension| extension.call.invoked_us);
    for extension in known {
        let until = extension.call.invoked_us + extension.lease_ms * 1000;
        let is_granted = !extension.call.is_unknown() && still_held(extension.call, former);
        if is_granted {
            sure_until = until;
        } else if extension.call.is_unknown() {
            sure_until = sure_until.min(until);
        }
    }
    latter_returned < sure_until
}

/// Whether the bus said that the lease was extended.
pub(super) fn still_held(extension: &Call, claim: &Claiming<'_>) -> bool {
    matches!(extension.answer(), Some(crate::history::Answer::Still(still)) if still.contains(&claim.taken.held.id))
}
