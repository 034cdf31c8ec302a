//! A message that awaits others starts after all of them have ended.

use std::str::FromStr;

use uuid::Uuid;

use super::{Harm, Invariant, Report, index::Index};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut waits = false;
    // a replay, which has the payload of another, awaits nothing
    for row in index.rows.messages.iter().filter(|row| row.replay_of.is_none()) {
        let said = row.said.as_ref().and_then(|said| said["awaits"].as_array()).map_or(&[][..], Vec::as_slice);
        let awaited = said.iter().filter_map(|id| Uuid::from_str(id.as_str()?).ok());
        let story = index.stories.get(&row.id);
        let claims = story.map_or(&[][..], |story| story.claims.as_slice());
        let first =
            claims.iter().filter_map(|claim| Some((claim.call.returned_us?, claim.call))).min_by_key(|one| one.0);
        for former in awaited.filter_map(|id| index.by_id.get(&id)) {
            waits = true;
            let Some((began, call)) = first else { continue };
            if former.done_us.is_none_or(|done| began < done) {
                let what = format!("started before {}, which it awaits, had ended", former.id);
                report.add(Invariant::Awaits, Harm::Other, Some(row.id), what, &[call]);
            }
        }
    }
    if !waits {
        report.not_applicable.push((Invariant::Awaits, "no message awaits another"));
    }
}
