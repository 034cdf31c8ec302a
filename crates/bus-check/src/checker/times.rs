//! I5: what the times of the database say.

use super::{Harm, Invariant, Report, index::Index};

/// Rounding, in microseconds.
const SLACK_US: i64 = 1_000;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    nothing_starts_late(index, report);
    nothing_starts_early(index, report);
    creation_is_timed_by_the_database(index, report);
}

fn nothing_starts_late(index: &Index<'_>, report: &mut Report) {
    for row in &index.rows.messages {
        let (Some(claimed), Some(expires)) = (row.claimed_us, row.expires_us) else { continue };
        // a claim also notes what expired under it and what it therefore handed to nobody
        let claims = index.stories.get(&row.id).map_or(&[][..], |story| story.claims.as_slice());
        let was_handed_out = claims.iter().any(|claim| claim.attempt() == row.attempts);
        if claimed >= expires && was_handed_out {
            let what = format!("started {} us after its time to live", claimed - expires);
            report.add(Invariant::I5, Harm::Other, Some(row.id), what, &[]);
        }
    }
    for (id, story) in &index.stories {
        for claim in &story.claims {
            let (Some(remaining), Some(returned)) = (claim.taken.remaining_ms, claim.call.returned_us) else {
                continue;
            };
            // what was left was read before the return; that it runs out on the way to the worker nobody can help
            let expired_by = returned + (remaining + 1) * 1_000;
            if expired_by <= claim.call.invoked_us {
                let late = (claim.call.invoked_us - expired_by) / 1_000;
                let what = format!("asked for {late} ms after its time to live, and handed out");
                report.add(Invariant::I5, Harm::Other, Some(*id), what, &[claim.call]);
            }
        }
    }
}

/// What is delayed waits that long.
fn nothing_starts_early(index: &Index<'_>, report: &mut Report) {
    for row in &index.rows.messages {
        let Some(delay) = row.said.as_ref().and_then(|said| said["delay"].as_i64()) else { continue };
        let Some(story) = index.stories.get(&row.id) else { continue };
        // a replay, which nobody sent so, waits for nothing
        let sendings = story.sendings.iter().filter(|sending| !sending.accepted.duplicate);
        for sending in sendings {
            let due = sending.call.invoked_us + delay * 1_000;
            let early = story.claims.iter().find(|claim| claim.call.returned_us.is_some_and(|returned| returned < due));
            if let Some(claim) = early {
                let what = format!("started before its delay of {delay} ms was over");
                report.add(Invariant::I5, Harm::Other, Some(row.id), what, &[sending.call, claim.call]);
            }
        }
    }
}

/// Between the call and its return by the clock of the machine, whatever the client believes or made its ids from.
fn creation_is_timed_by_the_database(index: &Index<'_>, report: &mut Report) {
    for row in &index.rows.messages {
        let Some(story) = index.stories.get(&row.id) else { continue };
        for sending in story.sendings.iter().filter(|sending| !sending.accepted.duplicate) {
            let Some(returned) = sending.call.returned_us else { continue };
            let (from, until) = (sending.call.invoked_us - SLACK_US, returned + SLACK_US);
            if row.created_us < from || row.created_us > until {
                let off = (row.created_us - sending.call.invoked_us) / 1000;
                let what = format!("created {off} ms from the moment that it was sent");
                report.add(Invariant::I5, Harm::Other, Some(row.id), what, &[sending.call]);
            }
        }
    }
}
