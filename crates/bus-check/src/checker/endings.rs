//! I2: everything ends once faults stop, for a reason that the history or the row can tell.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    history::{Answer, Call},
    rows::MessageRow,
};

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
    cancelled_as_told(index, report);
    given_up_as_told(index, report);
    replayed_once(index, report);
    if rest == Rest::UnderWay {
        report.not_applicable.push((Invariant::I2, "the work was under way when the rows were read"));
    }
}

/// Who cancels is told how many were cancelled, and they stay so.
fn cancelled_as_told(index: &Index<'_>, report: &mut Report) {
    if index.was_retained() {
        return;
    }
    let mut cancelled: HashMap<Uuid, u64> = HashMap::new();
    for row in index.rows.messages.iter().filter(|row| row.status == "cancelled") {
        let named = [Some(row.root_id), (row.id != row.root_id).then_some(row.id)];
        named.into_iter().flatten().for_each(|id| *cancelled.entry(id).or_default() += 1);
    }
    for (root, calls) in &index.cancels {
        let told: u64 =
            calls.iter().map(|call| if let Some(Answer::Count(count)) = call.answer() { *count } else { 0 }).sum();
        let there = cancelled.get(root).copied().unwrap_or(0);
        if told > there {
            let what = format!("{told} were said to be cancelled, {there} are");
            report.add(Invariant::I2, Harm::Other, Some(*root), what, calls);
        }
    }
    for (id, cancels) in &index.cancels {
        let Some(story) = index.stories.get(id) else { continue };
        // what a step of it was about to send meanwhile may start
        let Some(sent_us) = story.sendings.iter().filter_map(|sending| sending.call.returned_us).min() else {
            continue;
        };
        let cancelled = cancels
            .iter()
            .filter(|call| sent_us < call.invoked_us)
            .filter_map(|call| matches!(call.answer(), Some(Answer::Count(_))).then_some((call.returned_us?, *call)));
        let Some((cancelled_us, call)) = cancelled.min_by_key(|(returned, _)| *returned) else { continue };
        if let Some(claim) = story.claims.iter().find(|claim| claim.call.invoked_us > cancelled_us) {
            let what = "handed out after it was cancelled";
            report.add(Invariant::I2, Harm::Other, Some(*id), what, &[call, claim.call]);
        }
    }
}

/// What its holder gives up is not tried again.
fn given_up_as_told(index: &Index<'_>, report: &mut Report) {
    for (id, story) in &index.stories {
        for end in story.ends.iter().filter(|end| matches!(end.way, Way::Fail { retriable: false, again: Some(true) }))
        {
            report.add(Invariant::I2, Harm::Other, Some(*id), "given up, and tried again", &[end.call]);
        }
    }
}

/// A dead letter is sent again once, unless what was sent has come to nothing itself.
fn replayed_once(index: &Index<'_>, report: &mut Report) {
    let mut alive: HashMap<Uuid, usize> = HashMap::new();
    for row in index.rows.messages.iter().filter(|row| !matches!(row.status.as_str(), "failed" | "cancelled")) {
        row.replay_of.into_iter().for_each(|letter| *alive.entry(letter).or_default() += 1);
    }
    for (letter, count) in alive.into_iter().filter(|(_, count)| *count > 1) {
        let what = format!("{count} replays of one dead letter");
        report.add(Invariant::I4, Harm::Duplicated, Some(letter), what, &[]);
    }
}

/// A dead letter has used up its attempts or its time, or its holder said that more would not help.
fn failures_have_a_reason(row: &MessageRow, story: &Story<'_>, report: &mut Report) {
    let used_up = row.attempts - row.released >= row.max_attempts;
    // a retry that could only come after the time to live is none
    let is_over = row.expires_us.is_some_and(|expires| row.done_us >= Some(expires));
    let may_have_expired = is_over || (row.expires_us.is_some() && row.attempts > row.released);
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
