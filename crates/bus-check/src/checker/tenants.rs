//! I7: tenant of the sender, of the row, of its family, of its claims and of its audit are one.

use super::{Harm, Invariant, Report, index::Index};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    for row in &index.rows.messages {
        for relative in [Some(row.root_id), row.parent_id, row.replay_of].into_iter().flatten() {
            if let Some(other) = index.by_id.get(&relative).filter(|other| other.tenant != row.tenant) {
                let what = format!("{} belongs with {relative} of {}", row.tenant, other.tenant);
                report.add(Invariant::I7, Harm::Other, Some(row.id), what, &[]);
            }
        }
        for event in index.events.get(&row.id).map_or(&[][..], Vec::as_slice) {
            if event.tenant != row.tenant {
                let what = format!("an audit row {} says {}", event.kind, event.tenant);
                report.add(Invariant::I7, Harm::Other, Some(row.id), what, &[]);
            }
        }
    }
    for (id, story) in &index.stories {
        let row = index.by_id.get(id);
        for sending in &story.sendings {
            if row.is_some_and(|row| row.tenant != sending.sent.tenant) {
                let what = format!("sent for {}, stored for another", sending.sent.tenant);
                report.add(Invariant::I7, Harm::Other, Some(*id), what, &[sending.call]);
            }
        }
        for claim in &story.claims {
            let sent_for = story.sendings.first().map(|sending| sending.sent.tenant.as_str());
            let tenant = row.map(|row| row.tenant.as_str()).or(sent_for);
            if tenant.is_some_and(|tenant| tenant != claim.taken.tenant) {
                let what = format!("handed out for {}", claim.taken.tenant);
                report.add(Invariant::I7, Harm::Other, Some(*id), what, &[claim.call]);
            }
        }
    }
}
