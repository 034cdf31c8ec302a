//! Promises about what surrounds a message (time, money, tenants, slots, retention, counters, groups): each break is found.

use serde_json::json;

use super::script::{LEASE_MS, Script, completing_with, done, held, id, ok};
use crate::{Answer, Invariant, Operation, Taken};

#[test]
fn start_after_the_time_to_live_breaks_i5() {
    let mut script = Script::default();
    done(&mut script, 1);
    let row = &mut script.rows.messages[0];
    (row.claimed_us, row.expires_us) = (Some(10_000), Some(9_000));
    script.breaks(Invariant::I5, "started 1000 us after");

    let mut script = Script::default();
    script.send(1);
    let taken = Taken { held: held(1, 1), tenant: "acme".to_owned(), remaining_ms: Some(-50), mark: None };
    let asked = Operation::Claim { holder: "a".to_owned(), lease_ms: LEASE_MS };
    script.call(asked, ok(Answer::Taken(vec![taken])));
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I5, "after its time to live, and handed out");
}

#[test]
fn creation_by_the_clock_of_a_client_breaks_i5() {
    let mut script = Script::default();
    done(&mut script, 1);
    script.rows.messages[0].created_us += 7_200_000_000;
    script.breaks(Invariant::I5, "created 7200000 ms");
}

#[test]
fn spend_above_the_budget_breaks_i6() {
    let mut script = Script::default();
    done(&mut script, 1);
    let row = &mut script.rows.messages[0];
    row.assignment = Some(json!({"budget": {"maxTokens": 100}}));
    row.result = Some(json!({"by": "a", "attempt": 1, "usage": {"input_tokens": 80, "output_tokens": 21}}));
    let result = row.result.clone();
    script.event(1, "execute_done");
    for call in &mut script.calls {
        if let Operation::Complete { ended, .. } = &mut call.operation {
            ended[0].result.clone_from(&result);
        }
    }
    script.breaks(Invariant::I6, "101 tokens spent of 100");
}

#[test]
fn row_claim_or_audit_of_another_tenant_breaks_i7() {
    let mut script = Script::default();
    done(&mut script, 1);
    script.rows.messages[0].tenant = "other".to_owned();
    script.breaks(Invariant::I7, "stored for another");

    let mut script = Script::default();
    done(&mut script, 1);
    done(&mut script, 2);
    script.rows.messages[1].root_id = id(1);
    script.rows.messages[0].tenant = "other".to_owned();
    script.breaks(Invariant::I7, "belongs with");

    let mut script = Script::default();
    done(&mut script, 1);
    script.event(1, "lease_expired");
    script.rows.events[0].tenant = "other".to_owned();
    script.breaks(Invariant::I7, "an audit row");
}

#[test]
fn two_owners_of_a_slot_break_i8() {
    let mut script = Script::default();
    script.agent(1);
    script.agent(2);
    script.breaks(Invariant::I8, "owned by w/0#1 and w/0#2");
}

#[test]
fn superseded_holder_that_claims_or_an_epoch_that_does_not_grow_breaks_i8() {
    let register = |script: &mut Script, holder: &str, epoch| {
        let asked = Operation::Register { name: "w".to_owned(), slot: 0 };
        script.call(asked, ok(Answer::Member { holder: holder.to_owned(), epoch }));
    };
    let mut script = Script::default();
    script.send(1);
    register(&mut script, "w/0#1", 1);
    register(&mut script, "w/0#2", 2);
    script.claim("w/0#1", 1, 1);
    script.complete("w/0#1", 1, 1, true);
    script.row(1, "done", "w/0#1", 1);
    script.breaks(Invariant::I8, "claimed after");

    let mut script = Script::default();
    register(&mut script, "w/0#1", 2);
    register(&mut script, "w/0#2", 2);
    script.breaks(Invariant::I8, "epoch 2 was followed by 2");
}

#[test]
fn unfinished_row_that_retention_removed_breaks_i9() {
    let mut script = Script::default();
    script.send(1);
    script.call(Operation::Retain { keep_ms: 0 }, ok(Answer::Count(1)));
    script.breaks(Invariant::I9, "nothing tells of its end");
}

#[test]
fn task_that_retention_cut_through_breaks_i9() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.call(completing_with("a", 1, 1, 1), ok(Answer::Still(vec![id(1)])));
    script.claim("a", 2, 1);
    script.complete("a", 2, 1, true);
    script.call(Operation::Retain { keep_ms: 0 }, ok(Answer::Count(1)));
    let child = script.row(2, "done", "a", 1);
    (child.parent_id, child.root_id) = (Some(id(1)), id(1));
    script.breaks(Invariant::I9, "cut through");
}

#[test]
fn counter_that_is_not_in_the_table_breaks_i10() {
    let mut script = Script::default();
    done(&mut script, 1);
    script.rows.shown.insert("done".to_owned(), 2);
    script.breaks(Invariant::I10, "2 done shown, 1 in the table");
}

#[test]
fn unfinished_message_that_stands_nowhere_breaks_i2() {
    let mut script = Script::default();
    script.send(1);
    script.row(1, "claimed", "a", 1);
    script.rows.misplaced.push((id(1), "nowhere".to_owned()));
    script.breaks(Invariant::I2, "unfinished and nowhere");
}

#[test]
fn group_that_runs_two_at_once_or_out_of_order_is_seen() {
    let mut script = Script::default();
    script.send(1);
    script.send(2);
    script.claim("a", 1, 1);
    script.claim("b", 2, 1);
    script.complete("b", 2, 1, true);
    script.row(2, "done", "b", 1).group_key = Some("g".to_owned());
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1).group_key = Some("g".to_owned());
    script.breaks(Invariant::Group, "ran beside");

    let mut script = Script::default();
    script.send(1);
    script.send(2);
    for number in [2, 1] {
        script.claim("a", number, 1);
        script.complete("a", number, 1, true);
        script.row(number, "done", "a", 1).group_key = Some("g".to_owned());
    }
    script.breaks(Invariant::Group, "which was sent earlier");
}
