//! I8: a slot of the registry has one owner, and one that was superseded claims nothing more.

use std::collections::HashMap;

use crate::history::{Answer, Call, Operation};

use super::{Harm, Invariant, Report, index::Index};

struct Registration<'a> {
    call: &'a Call,
    holder: &'a str,
    epoch: i64,
}

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut living: HashMap<(&str, i32), Vec<&str>> = HashMap::new();
    for agent in index.rows.agents.iter().filter(|agent| agent.lives) {
        living.entry((&agent.name, agent.slot)).or_default().push(&agent.holder);
    }
    for ((name, slot), holders) in living.iter().filter(|(_, holders)| holders.len() > 1) {
        let what = format!("slot {name}/{slot} is owned by {}", holders.join(" and "));
        report.add(Invariant::I8, Harm::Duplicated, None, what, &[]);
    }
    let slots = registrations(index);
    if slots.is_empty() && index.rows.agents.is_empty() {
        report.not_applicable.push((Invariant::I8, "nobody registered"));
    }
    for owners in slots.values() {
        for (position, owner) in owners.iter().enumerate() {
            for other in &owners[position + 1..] {
                epochs_grow(owner, other, report);
                epochs_grow(other, owner, report);
                superseded_is_idle(index, owner, other, report);
                superseded_is_idle(index, other, owner, report);
            }
        }
    }
}

fn registrations<'a>(index: &Index<'a>) -> HashMap<(&'a str, u32), Vec<Registration<'a>>> {
    let mut slots: HashMap<(&str, u32), Vec<Registration<'_>>> = HashMap::new();
    for call in index.calls {
        let Operation::Register { name, slot } = &call.operation else { continue };
        if let Some(Answer::Member { holder, epoch }) = call.answer() {
            slots.entry((name, *slot)).or_default().push(Registration { call, holder, epoch: *epoch });
        }
    }
    slots
}

fn epochs_grow(former: &Registration<'_>, latter: &Registration<'_>, report: &mut Report) {
    let is_earlier = former.call.returned_us.is_some_and(|returned| returned < latter.call.invoked_us);
    if is_earlier && former.holder != latter.holder && former.epoch >= latter.epoch {
        let what = format!("epoch {} was followed by {}", former.epoch, latter.epoch);
        report.add(Invariant::I8, Harm::Duplicated, None, what, &[former.call, latter.call]);
    }
}

fn superseded_is_idle(index: &Index<'_>, old: &Registration<'_>, new: &Registration<'_>, report: &mut Report) {
    let Some(since) = new.call.returned_us.filter(|_| old.epoch < new.epoch) else { return };
    for call in index.calls.iter().filter(|call| call.invoked_us > since) {
        let Operation::Claim { holder, .. } = &call.operation else { continue };
        let got_some = matches!(call.answer(), Some(Answer::Taken(taken)) if !taken.is_empty());
        if holder == old.holder && got_some {
            let what = format!("{} claimed after {} had taken its slot", old.holder, new.holder);
            report.add(Invariant::I8, Harm::Other, None, what, &[new.call, call]);
        }
    }
}
