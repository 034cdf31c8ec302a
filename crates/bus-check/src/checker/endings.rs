//! I2: everything ends once faults stop, for a reason that the history or the row can tell.

use crate::{history::Call, rows::MessageRow};

use super::{
    Harm, Invariant, Report, Rest,
    index::{Index, Story, Way},
};

pub(super) fn check(index: &Index<'_>, rest: Rest, report: &mut Report) {
    let none = Story::default();
    for row in &index.rows.messages {
        let story = index.stories.get(&row.id).unwrap_or(&none);
        if !row.has_ended() {
            if rest == Rest::Drained {
                let calls: Vec<&Call> = story.claims.iter().map(|claim| claim.call).collect();
                let place = index.rows.places.iter().find(|(id, _)| *id == row.id).map_or("", |(_, place)| place);
                let what = format!("still {} after {} attempts {place}", row.status, row.attempts);
                report.add(Invariant::I2, Harm::Lost, Some(row.id), what, &calls);
            }
            continue;
        }
        if row.attempts - row.released > row.max_attempts {
            let what = format!("{} counted attempts, {} allowed", row.attempts - row.released, row.max_attempts);
            report.add(Invariant::I2, Harm::Other, Some(row.id), what, &[]);
        }
        match row.status.as_str() {
            "failed" => failures_have_a_reason(row, story, report),
            "cancelled" if !index.cancels.contains_key(&row.root_id) && !index.cancels.contains_key(&row.id) => {
                report.add(Invariant::I2, Harm::Lost, Some(row.id), "cancelled, and nobody asked for it", &[]);
            }
            _ => {}
        }
        audit_tells_of_the_end(index, row, report);
    }
    if rest == Rest::UnderWay {
        report.not_applicable.push((Invariant::I2, "the work was under way when the rows were read"));
    }
}

/// A dead letter has used up its attempts or its time, or its holder said that more would not help.
fn failures_have_a_reason(row: &MessageRow, story: &Story<'_>, report: &mut Report) {
    let used_up = row.attempts - row.released >= row.max_attempts;
    // a retry that could only come after the time to live is none
    let may_have_expired = row.expires_us.is_some();
    let handed_back_too_often = row.released >= 1000;
    let given_up =
        story.ends.iter().any(|end| end.may_count() && matches!(end.way, Way::Fail { retriable: false, .. }));
    if !(used_up || may_have_expired || handed_back_too_often || given_up || story.was_unreadable(row)) {
        let calls: Vec<&Call> = story.ends.iter().map(|end| end.call).collect();
        let what = format!("given up after {} of {} attempts for no reason", row.attempts, row.max_attempts);
        report.add(Invariant::I2, Harm::Lost, Some(row.id), what, &calls);
    }
}

/// Exactly one audit row tells of an end, written with it: of all dead letters and cancels, and of assigned completions.
fn audit_tells_of_the_end(index: &Index<'_>, row: &MessageRow, report: &mut Report) {
    let events = index.events.get(&row.id).map_or(&[][..], Vec::as_slice);
    let count = |kinds: &[&str]| events.iter().filter(|event| kinds.contains(&event.kind.as_str())).count();
    let expected = |status: &str| usize::from(row.status == status);
    let failed = count(&["execute_failed", "message_failed"]);
    if failed != expected("failed") {
        let what = format!("{failed} audit rows of a dead letter for one that is {}", row.status);
        report.add(Invariant::I2, Harm::Duplicated, Some(row.id), what, &[]);
    }
    let cancelled = count(&["message_cancelled"]);
    if cancelled != expected("cancelled") {
        let what = format!("{cancelled} audit rows of a cancel for one that is {}", row.status);
        report.add(Invariant::I2, Harm::Duplicated, Some(row.id), what, &[]);
    }
    let done = count(&["execute_done"]);
    if row.assignment.is_some() && done != expected("done") {
        let what = format!("{done} audit rows of a completion for one that is {}", row.status);
        report.add(Invariant::I3, Harm::Duplicated, Some(row.id), what, &[]);
    }
    if done > 1 {
        report.add(Invariant::I3, Harm::Duplicated, Some(row.id), format!("completed {done} times in the audit"), &[]);
    }
}
