//! No more messages of a route, or of each of its tenants, run at once than its limit says.

use std::collections::BTreeMap;

use crate::{history::Operation, rows::MessageRow};

use super::{
    Harm, Invariant, Report,
    index::{Claiming, Index, Story},
};

/// Judges limits as they stand at the end, so they must have stood from the beginning.
pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    if index.rows.limits.is_empty() {
        report.not_applicable.push((Invariant::Limit, "no route has a limit"));
    }
    for limit in &index.rows.limits {
        // beginnings and ends by count, in the order of time, ends first
        let mut moments: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
        for (id, story) in &index.stories {
            let Some(row) = index.by_id.get(id).filter(|row| row.route == limit.route) else { continue };
            let counted = if limit.by_tenant { row.tenant.as_str() } else { "" };
            for claim in &story.claims {
                let (Some(from), until) = (claim.call.returned_us, surely_until(index, row, story, claim)) else {
                    continue;
                };
                if from < until {
                    moments.entry(counted).or_default().extend([(from, 1), (until, -1)]);
                }
            }
        }
        for (counted, mut moments) in moments {
            moments.sort_unstable();
            let mut running = 0;
            let most = moments.iter().map(|(_, change)| {
                running += change;
                running
            });
            let most = most.max().unwrap_or(0);
            if most > i64::from(limit.max_running) {
                let what = format!("{most} {counted} ran at once on {}, {} may", limit.route, limit.max_running);
                report.add(Invariant::Limit, Harm::Other, None, what, &[]);
            }
        }
    }
}

/// Until when a claim ran for certain, in microseconds: its shortest lease, or the first that may have ended it.
fn surely_until(index: &Index<'_>, row: &MessageRow, story: &Story<'_>, claim: &Claiming<'_>) -> i64 {
    let ends = story.ends.iter().filter(|end| end.attempt == claim.attempt() && end.may_count());
    let cancels = [row.id, row.root_id].into_iter().filter_map(|id| index.cancels.get(&id)).flatten();
    let evictions = index.evictions.iter().filter(|call| match &call.operation {
        Operation::RequeueHeld { holder } => holder == claim.holder,
        _ => true,
    });
    let calls = ends.map(|end| end.call).chain(cancels.copied()).chain(evictions.copied());
    let lease = claim.call.invoked_us + claim.lease_ms * 1_000;
    calls.map(|call| call.invoked_us).chain([lease]).chain(row.expires_us).min().unwrap_or(lease)
}
