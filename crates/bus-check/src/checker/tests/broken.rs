//! Histories in which a promise is broken: each is found, by its name.

use serde_json::json;

use super::script::{LEASE_MS, Script, completing_with, done, held, id, ok, refused, unknown};
use crate::{Accepted, Answer, Invariant, Operation, Sent};

fn keyed(key: &str) -> Sent {
    Sent { tenant: "acme".to_owned(), key: Some(key.to_owned()), ..Sent::default() }
}

#[test]
fn acknowledged_message_that_is_gone_breaks_i1() {
    let mut script = Script::default();
    script.send(1);
    script.breaks(Invariant::I1, "not in the table");
}

#[test]
fn half_a_batch_breaks_i1() {
    let mut script = Script::default();
    let sent = |number| Sent { id: Some(id(number)), tenant: "acme".to_owned(), key: None, mark: None };
    script.call(Operation::Enqueue { messages: vec![sent(1), sent(2)] }, unknown());
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I1, "1 of a batch of 2");
}

#[test]
fn follow_up_that_is_missing_breaks_i1() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.call(completing_with("a", 1, 1, 2), ok(Answer::Still(vec![id(1)])));
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I1, "0 follow-ups");
}

#[test]
fn message_that_never_ends_breaks_i2() {
    let mut script = Script::default();
    script.send(1);
    script.row(1, "queued", "", 0);
    script.breaks(Invariant::I2, "still queued");
}

#[test]
fn message_given_up_early_or_cancelled_by_nobody_breaks_i2() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.row(1, "failed", "a", 1);
    script.breaks(Invariant::I2, "1 of 5 attempts for no reason");

    let mut script = Script::default();
    script.send(1);
    script.row(1, "cancelled", "", 0);
    script.breaks(Invariant::I2, "nobody asked");
}

#[test]
fn too_many_attempts_and_a_silent_dead_letter_break_i2() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(2 * LEASE_MS);
    script.claim("a", 1, 2);
    script.row(1, "failed", "a", 2).max_attempts = 1;
    script.breaks(Invariant::I2, "2 counted attempts, 1 allowed");

    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.fail("a", 1, 1, false);
    script.row(1, "failed", "a", 1);
    script.rows.events.clear();
    script.breaks(Invariant::I2, "0 audit rows");
}

#[test]
fn double_completion_breaks_i3() {
    let mut script = Script::default();
    done(&mut script, 1);
    script.complete("a", 1, 1, true);
    script.breaks(Invariant::I3, "completed more than once");
}

#[test]
fn completion_of_a_lost_lease_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(2 * LEASE_MS);
    script.claim("b", 1, 2);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 2).attempts = 1;
    script.rows.messages[0].result = Some(json!({"by": "a", "attempt": 1}));
    script.breaks(Invariant::I3, "although attempt 2 was given out");

    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(2 * LEASE_MS);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "ms after its lease");
}

#[test]
fn completion_by_one_who_never_held_it_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.complete("b", 1, 1, true);
    script.row(1, "done", "b", 1);
    script.breaks(Invariant::I3, "never given to it");
}

#[test]
fn two_live_owners_break_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.claim("b", 1, 2);
    script.complete("b", 1, 2, true);
    script.row(1, "done", "b", 2);
    script.breaks(Invariant::I3, "while attempt 1 was leased");

    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.claim("b", 1, 1);
    script.complete("b", 1, 1, true);
    script.row(1, "done", "b", 1);
    script.breaks(Invariant::I3, "given out 2 times");
}

#[test]
fn granted_extension_that_is_not_kept_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    let asked = Operation::Extend { holder: "a".to_owned(), held: vec![held(1, 1)], lease_ms: 10_000 };
    script.call(asked, ok(Answer::Still(vec![id(1)])));
    script.later(2 * LEASE_MS);
    script.claim("b", 1, 2);
    script.complete("b", 1, 2, true);
    script.row(1, "done", "b", 2);
    script.breaks(Invariant::I3, "while attempt 1 was leased");
}

#[test]
fn recorded_completion_that_is_gone_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "failed", "a", 1).max_attempts = 1;
    script.breaks(Invariant::I3, "recorded as done");
}

#[test]
fn end_that_nobody_was_granted_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, false);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "was not told so");

    let mut script = Script::default();
    done(&mut script, 1);
    script.rows.messages[0].result = Some(json!({"by": "b"}));
    script.breaks(Invariant::I3, "not the one that was recorded");

    let mut script = Script::default();
    done(&mut script, 1);
    script.rows.messages[0].attempts = 2;
    script.rows.messages[0].claimed_by = Some("b".to_owned());
    script.breaks(Invariant::I3, "recorded as done by a");
}

#[test]
fn attempt_ended_twice_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.fail("a", 1, 1, true);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "was ended twice");
}

#[test]
fn assigned_completion_is_told_once_or_breaks_i3() {
    for told in [0, 2] {
        let mut script = Script::default();
        done(&mut script, 1);
        script.rows.messages[0].assignment = Some(json!({}));
        (0..told).for_each(|_| script.event(1, "execute_done"));
        script.breaks(Invariant::I3, "audit");
    }
}

#[test]
fn second_message_under_a_key_breaks_i4() {
    let mut script = Script::default();
    script.send_as(1, keyed("k"), false);
    script.send_as(2, keyed("k"), false);
    for number in [1, 2] {
        script.claim("a", number, 1);
        script.complete("a", number, 1, true);
        script.row(number, "done", "a", 1).idempotency_key = Some("k".to_owned());
    }
    script.breaks(Invariant::I4, "2 rows of acme under key k");
}

#[test]
fn message_that_nobody_sent_breaks_i4() {
    let mut script = Script::default();
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I4, "nobody sent");

    let mut script = Script::default();
    let messages = vec![Sent { id: Some(id(1)), tenant: "acme".to_owned(), key: None, mark: None }];
    script.call(Operation::Enqueue { messages }, refused());
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I4, "a refused enqueue left rows");
}

#[test]
fn message_without_a_key_taken_for_another_breaks_i4() {
    let mut script = Script::default();
    done(&mut script, 1);
    let messages = vec![Sent { tenant: "acme".to_owned(), ..Sent::default() }];
    script.call(Operation::Enqueue { messages }, ok(Answer::Enqueued(vec![Accepted { id: id(1), duplicate: true }])));
    script.breaks(Invariant::I4, "taken for another");
}
