//! I3, second half: a message is completed once, by the one who held it, and what was recorded stays.

use crate::{
    history::{Answer, Call},
    rows::MessageRow,
};

use super::{
    Harm, Invariant, Report,
    claims::still_held,
    index::{Claiming, End, Index, Story, Way},
};

/// Clocks are read one after the other, in microseconds.
const SLACK_US: i64 = 5_000;
/// From the look at the lease to the note of the end, on a server that is busy, in microseconds.
const NOTING_US: i64 = 100_000;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    for (id, story) in &index.stories {
        let accepted: Vec<&End<'_>> = story.ends.iter().filter(|end| end.is_accepted()).collect();
        let completed: Vec<&End<'_>> = accepted.iter().copied().filter(|end| end.completes()).collect();
        if completed.len() > 1 {
            let calls: Vec<&Call> = completed.iter().map(|end| end.call).collect();
            report.add(Invariant::I3, Harm::Duplicated, Some(*id), "completed more than once", &calls);
        }
        for (position, end) in accepted.iter().enumerate() {
            if let Some(again) = accepted[..position].iter().find(|other| other.attempt == end.attempt)
                && !(again.completes() && end.completes())
            {
                let what = format!("attempt {} was ended twice", end.attempt);
                report.add(Invariant::I3, Harm::Duplicated, Some(*id), what, &[again.call, end.call]);
            }
            if let Some((what, calls)) = why_stale(index, story, end) {
                report.add(Invariant::I3, Harm::Stale, Some(*id), what, &calls);
            }
        }
    }
    leases_are_renewed_for_their_holders(index, report);
    let none = Story::default();
    for row in &index.rows.messages {
        let story = index.stories.get(&row.id).unwrap_or(&none);
        recorded_ends_stay(row, story, report);
        match row.status.as_str() {
            "done" => done_by_somebody(index, row, story, report),
            _ if index.children.contains_key(&row.id) => {
                let what = format!("{} and yet it has follow-ups", row.status);
                report.add(Invariant::I3, Harm::Duplicated, Some(row.id), what, &[]);
            }
            _ => {}
        }
    }
}

/// Nobody renews what is somebody else's by now.
fn leases_are_renewed_for_their_holders(index: &Index<'_>, report: &mut Report) {
    let extensions = index.extensions.iter().flat_map(|(holder, all)| all.iter().map(move |one| (*holder, one)));
    for (holder, extension) in extensions {
        let Some(Answer::Still(still)) = extension.call.answer() else { continue };
        for held in extension.held.iter().filter(|held| still.contains(&held.id)) {
            let claims = index.stories.get(&held.id).map_or(&[][..], |story| story.claims.as_slice());
            let later = claims.iter().find(|claim| {
                let is_before = claim.call.returned_us.is_some_and(|returned| returned < extension.call.invoked_us);
                claim.attempt() > held.attempt && is_before
            });
            if let Some(later) = later {
                let what = format!("attempt {} was renewed although {} was given out", held.attempt, later.attempt());
                report.add(Invariant::I3, Harm::Stale, Some(held.id), what, &[later.call, extension.call]);
            }
            let own = claims.iter().find(|claim| claim.attempt() == held.attempt && claim.holder == holder);
            if own.is_none() && !index.may_not_know(holder, extension.call.invoked_us) {
                let what = format!("attempt {} was renewed for {holder}, who was not given it", held.attempt);
                report.add(Invariant::I3, Harm::Stale, Some(held.id), what, &[extension.call]);
            }
            if let Some(own) = own
                && let Some(until) = leased_until(index, own, Some(extension.call))
                && extension.call.invoked_us > until + SLACK_US
            {
                let late = (extension.call.invoked_us - until) / 1000;
                let what = format!("attempt {} was renewed {late} ms after its lease", held.attempt);
                report.add(Invariant::I3, Harm::Stale, Some(held.id), what, &[own.call, extension.call]);
            }
        }
    }
}

/// Why an end should not have been accepted.
fn why_stale<'a>(index: &Index<'a>, story: &Story<'a>, end: &End<'a>) -> Option<(String, Vec<&'a Call>)> {
    let claim = story.claims.iter().find(|claim| claim.attempt() == end.attempt && claim.holder == end.holder);
    let Some(claim) = claim else {
        return (!index.may_not_know(end.holder, end.call.invoked_us)).then(|| {
            (format!("attempt {} of {} was accepted and never given to it", end.attempt, end.holder), vec![end.call])
        });
    };
    let later = story.claims.iter().find(|other| {
        let is_before =
            end.completes() || other.call.returned_us.is_some_and(|returned| returned < end.call.invoked_us);
        other.attempt() > end.attempt && is_before
    });
    if let Some(later) = later {
        let what = format!("attempt {} was accepted although attempt {} was given out", end.attempt, later.attempt());
        return Some((what, vec![claim.call, later.call, end.call]));
    }
    if matches!(end.way, Way::Release) {
        // what is handed back may have lapsed: it is queued either way
        return None;
    }
    let latest = leased_until(index, claim, None)?;
    // a call may come late to the server: what counts is when it was done
    let row = index.by_id.get(&claim.taken.held.id).filter(|row| end.completes() && row.attempts == end.attempt);
    let noted = row.and_then(|row| row.done_us).map_or(i64::MIN, |done| done - NOTING_US);
    let accepted = noted.max(end.call.invoked_us);
    (accepted > latest + SLACK_US).then(|| {
        let late = (accepted - latest) / 1000;
        (format!("attempt {} was accepted {late} ms after its lease", end.attempt), vec![claim.call, end.call])
    })
}

/// The latest that a claim can have been leased until, in microseconds, one extension aside; none if nobody can tell.
fn leased_until(index: &Index<'_>, claim: &Claiming<'_>, aside: Option<&Call>) -> Option<i64> {
    let mut latest = claim.call.returned_us? + claim.lease_ms * 1000;
    let extensions = index.extensions.get(claim.holder).map_or(&[][..], Vec::as_slice);
    for extension in extensions.iter().filter(|extension| extension.held.contains(&claim.taken.held)) {
        if extension.call.is_unknown() {
            return None;
        }
        if still_held(extension.call, claim) && !aside.is_some_and(|aside| std::ptr::eq(aside, extension.call)) {
            latest = latest.max(extension.call.returned_us? + extension.lease_ms * 1000);
        }
    }
    Some(latest)
}

fn recorded_ends_stay(row: &MessageRow, story: &Story<'_>, report: &mut Report) {
    for end in story.ends.iter().filter(|end| end.is_accepted()) {
        let expected = match end.way {
            Way::Complete(_) => "done",
            Way::Fail { again: Some(false), .. } => "failed",
            Way::Fail { .. } | Way::Release => continue,
        };
        let is_kept =
            row.status == expected && row.attempts == end.attempt && row.claimed_by.as_deref() == Some(end.holder);
        if !is_kept {
            let what = format!(
                "recorded as {expected} by {} in attempt {}, the row says {} by {} in attempt {}",
                end.holder,
                end.attempt,
                row.status,
                row.claimed_by.as_deref().unwrap_or("nobody"),
                row.attempts
            );
            report.add(Invariant::I3, Harm::Lost, Some(row.id), what, &[end.call]);
        }
    }
}

/// A row that is done says who did it, and that one asked for it with this result and these follow-ups.
fn done_by_somebody(index: &Index<'_>, row: &MessageRow, story: &Story<'_>, report: &mut Report) {
    let own: Vec<&End<'_>> = story
        .ends
        .iter()
        .filter(|end| end.completes() && end.attempt == row.attempts && Some(end.holder) == row.claimed_by.as_deref())
        .collect();
    let calls: Vec<&Call> = own.iter().map(|end| end.call).collect();
    let Some(possible) =
        Some(own.iter().filter(|end| end.may_count()).collect::<Vec<_>>()).filter(|ends| !ends.is_empty())
    else {
        let who = row.claimed_by.as_deref().unwrap_or("nobody");
        let what = format!("done by {who} in attempt {}, who was not told so or never asked", row.attempts);
        report.add(Invariant::I3, Harm::Stale, Some(row.id), what, &calls);
        return;
    };
    let children = index.children.get(&row.id).copied().unwrap_or(0);
    let fits = |end: &&End<'_>| match end.way {
        Way::Complete(ending) => (ending.result == row.result, ending.follow_ups == children),
        Way::Fail { .. } | Way::Release => (false, false),
    };
    let fitting: Vec<(bool, bool)> = possible.iter().map(|end| fits(end)).collect();
    if !fitting.iter().any(|(result, _)| *result) {
        report.add(Invariant::I3, Harm::Other, Some(row.id), "the result is not the one that was recorded", &calls);
    }
    if !fitting.iter().any(|(_, follow_ups)| *follow_ups) {
        let what = format!("{children} follow-ups are there, another number was sent with the completion");
        report.add(Invariant::I1, Harm::Lost, Some(row.id), what, &calls);
    }
}
