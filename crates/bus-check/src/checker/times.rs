//! I5: what the times of the database say.

use super::{Harm, Invariant, Report, index::Index};

/// Rounding, in microseconds.
const SLACK_US: i64 = 1_000;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    nothing_starts_late(index, report);
    creation_is_timed_by_the_database(index, report);
}

fn nothing_starts_late(index: &Index<'_>, report: &mut Report) {
    for row in &index.rows.messages {
        let (Some(claimed), Some(expires)) = (row.claimed_us, row.expires_us) else { continue };
        if claimed >= expires {
            let what = format!("started {} us after its time to live", claimed - expires);
            report.add(Invariant::I5, Harm::Other, Some(row.id), what, &[]);
        }
    }
    for (id, story) in &index.stories {
        for claim in &story.claims {
            if let Some(remaining) = claim.taken.remaining_ms
                && remaining < 0
            {
                let what = format!("handed out {} ms after its time to live", -remaining);
                report.add(Invariant::I5, Harm::Other, Some(*id), what, &[claim.call]);
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
