//! I9: retention removes finished tasks, each as a whole.

use uuid::Uuid;

use crate::history::Call;

use super::{
    Harm, Invariant, Report,
    index::{Index, Story, Way},
};

/// Audit rows that tell of an end; they outlive the message.
const ENDS: [&str; 4] = ["execute_done", "execute_failed", "message_failed", "message_cancelled"];

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    if !index.was_retained() {
        report.not_applicable.push((Invariant::I9, "retention removed nothing"));
        return;
    }
    for (id, story) in &index.stories {
        if story.is_acknowledged() && !index.by_id.contains_key(id) && !has_ended(index, *id, story) {
            let sent = story.sendings.iter().map(|sending| sending.call);
            let mut calls: Vec<&Call> = sent.chain(story.claims.iter().map(|claim| claim.call)).collect();
            calls.extend(index.retentions.iter().take(2));
            report.add(Invariant::I9, Harm::Lost, Some(*id), "removed, and nothing tells of its end", &calls);
        }
    }
    for row in &index.rows.messages {
        let lacks = |other: Uuid| !index.by_id.contains_key(&other);
        if lacks(row.root_id) || row.parent_id.is_some_and(lacks) {
            let what = "retention cut through its task: the root or the parent is gone";
            report.add(Invariant::I9, Harm::Lost, Some(row.id), what, &index.retentions);
        }
    }
}

fn has_ended(index: &Index<'_>, id: Uuid, story: &Story<'_>) -> bool {
    let told =
        index.events.get(&id).is_some_and(|events| events.iter().any(|event| ENDS.contains(&event.kind.as_str())));
    let ended = story.ends.iter().any(|end| {
        end.may_count()
            && match end.way {
                Way::Complete(_) => true,
                Way::Fail { again, .. } => again != Some(true),
                Way::Release => false,
            }
    });
    told || ended || index.cancels.contains_key(&id)
}
