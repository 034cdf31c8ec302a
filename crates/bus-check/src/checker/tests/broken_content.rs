//! Histories in which messages are mixed up, lapse, or are counted wrong: each is found, by the name of its promise.

use serde_json::json;

use super::script::{LEASE_MS, Script, completing, done, held, id, ok, unknown};
use crate::{Answer, Invariant, LimitRow, Operation, Sent, Taken};

fn marked(mark: &str) -> Sent {
    Sent { tenant: "acme".to_owned(), mark: Some(mark.to_owned()), ..Sent::default() }
}

/// A message sent with mark `m`, done, and stored as its sender said.
fn described() -> Script {
    let mut script = Script::default();
    script.send_as(1, marked("m"), false);
    let taken = Taken { held: held(1, 1), tenant: "acme".to_owned(), remaining_ms: None, mark: Some("m".to_owned()) };
    let asked = Operation::Claim { holder: "a".to_owned(), lease_ms: LEASE_MS };
    script.call(asked, ok(Answer::Taken(vec![taken])));
    script.complete("a", 1, 1, true);
    let row = script.row(1, "done", "a", 1);
    row.mark = Some("m".to_owned());
    row.said =
        Some(json!({"tenant": "acme", "key": null, "group": null, "priority": 500, "attempts": 5, "awaits": []}));
    script
}

#[test]
fn message_that_is_not_as_sent_breaks_i1() {
    described().passes();

    let mut script = described();
    script.rows.messages[0].mark = Some("n".to_owned());
    script.breaks(Invariant::I1, "payload of another message: n");

    let mut script = described();
    let Some(Answer::Taken(taken)) = script.calls[1].answer().cloned() else { panic!("it is a claim") };
    script.calls[1].outcome = ok(Answer::Taken(vec![Taken { mark: Some("n".to_owned()), ..taken[0].clone() }]));
    script.breaks(Invariant::I1, "handed out with the payload");

    let mut script = described();
    script.rows.messages[0].priority = 10;
    script.breaks(Invariant::I1, "its priority is not");

    let mut script = described();
    script.rows.messages[0].said.as_mut().expect("said")["ttl"] = json!(5_000);
    script.breaks(Invariant::I1, "its time to live is not");

    let mut script = described();
    script.rows.messages[0].group_key = Some("g".to_owned());
    script.breaks(Invariant::I1, "its group is not");
}

#[test]
fn message_that_starts_before_what_it_awaits_has_ended_is_found() {
    let awaiting = |first: u128, second: u128| {
        let mut script = Script::default();
        script.send(1);
        script.send(2);
        for number in [first, second] {
            script.claim("a", number, 1);
            script.complete("a", number, 1, true);
            script.row(number, "done", "a", 1);
        }
        let row = script.rows.messages.iter_mut().find(|row| row.id == id(2)).expect("it is there");
        row.said = Some(json!({"tenant": "acme", "awaits": [id(1)]}));
        script
    };
    awaiting(1, 2).passes();
    awaiting(2, 1).breaks(Invariant::Awaits, "which it awaits, had ended");
}

#[test]
fn attempt_that_no_lost_answer_explains_breaks_i3() {
    // somebody else's claim has no answer
    let with_noted = |holder: &str, started_us: i64| {
        let mut script = Script::default();
        script.send(1);
        script.later(10);
        script.call(Operation::Claim { holder: "a".to_owned(), lease_ms: LEASE_MS }, unknown());
        script.later(2 * LEASE_MS);
        script.claim("b", 1, 2);
        script.complete("b", 1, 2, true);
        script.row(1, "done", "b", 2);
        script.noted(1, 1, holder, Some(started_us));
        script
    };
    with_noted("a", 500_000).passes();
    with_noted("c", 500_000).breaks(Invariant::I3, "1 of 2 attempts were given to nobody");
    with_noted("a", 5_000).breaks(Invariant::I3, "1 of 2 attempts were given to nobody");
}

#[test]
fn lease_that_only_others_extended_ends() {
    let extended = |number: u128, still: Vec<uuid::Uuid>| {
        let mut script = Script::default();
        script.send(1);
        script.claim("a", 1, 1);
        let asked = Operation::Extend { holder: "a".to_owned(), held: vec![held(number, 1)], lease_ms: 60_000 };
        script.call(asked, ok(Answer::Still(still)));
        script.later(2 * LEASE_MS);
        script.complete("a", 1, 1, true);
        script.row(1, "done", "a", 1);
        script
    };
    extended(1, vec![id(1)]).passes();
    extended(1, Vec::new()).breaks(Invariant::I3, "ms after its lease");
    extended(2, vec![id(2)]).breaks(Invariant::I3, "ms after its lease");
}

#[test]
fn completion_that_came_late_to_the_server_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.call(completing("a", 1, 1), ok(Answer::Still(vec![id(1)])));
    script.later(2 * LEASE_MS);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "ms after its lease");
}

#[test]
fn lease_renewed_for_a_former_holder_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(2 * LEASE_MS);
    script.claim("b", 1, 2);
    let asked = Operation::Extend { holder: "a".to_owned(), held: vec![held(1, 1)], lease_ms: LEASE_MS };
    script.call(asked, ok(Answer::Still(vec![id(1)])));
    script.complete("b", 1, 2, true);
    script.row(1, "done", "b", 2);
    script.breaks(Invariant::I3, "was renewed although");
}

#[test]
fn lease_renewed_for_one_who_never_held_it_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    let asked = Operation::Extend { holder: "b".to_owned(), held: vec![held(1, 1)], lease_ms: LEASE_MS };
    script.call(asked, ok(Answer::Still(vec![id(1)])));
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "renewed for b, who was not given it");
}

#[test]
fn lease_renewed_after_it_lapsed_breaks_i3() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(2 * LEASE_MS);
    let asked = Operation::Extend { holder: "a".to_owned(), held: vec![held(1, 1)], lease_ms: LEASE_MS };
    script.call(asked, ok(Answer::Still(vec![id(1)])));
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I3, "ms after its lease");
}

#[test]
fn message_that_is_given_up_or_cancelled_starts_no_more() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    let asked = Operation::Fail { holder: "a".to_owned(), held: held(1, 1), retriable: false };
    script.call(asked, ok(Answer::Settled(Some(true))));
    script.claim("a", 1, 2);
    script.complete("a", 1, 2, true);
    script.row(1, "done", "a", 2);
    script.breaks(Invariant::I2, "given up, and tried again");

    let mut script = Script::default();
    script.send(1);
    script.call(Operation::Cancel { root: id(1) }, ok(Answer::Count(0)));
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.breaks(Invariant::I2, "handed out after it was cancelled");
}

#[test]
fn message_that_starts_within_its_delay_breaks_i5() {
    let delayed = |delay_ms: i64| {
        let mut script = Script::default();
        done(&mut script, 1);
        script.rows.messages[0].said = Some(json!({"tenant": "acme", "delay": delay_ms}));
        script
    };
    delayed(1).passes();
    delayed(60_000).breaks(Invariant::I5, "before its delay of 60000 ms");

    // its replay is sent without one
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.fail("a", 1, 1, false);
    script.row(1, "failed", "a", 1);
    script.call(Operation::Replay { dead_letter: id(1) }, ok(Answer::Replayed(id(2))));
    script.claim("a", 2, 1);
    script.complete("a", 2, 1, true);
    let row = script.row(2, "done", "a", 1);
    row.replay_of = Some(id(1));
    row.said = Some(json!({"tenant": "acme", "delay": 60_000, "awaits": [id(1)]}));
    script.passes();
}

#[test]
fn cancels_are_as_told_and_dead_letters_replayed_once() {
    let mut script = Script::default();
    done(&mut script, 1);
    script.call(Operation::Cancel { root: id(1) }, ok(Answer::Count(1)));
    script.breaks(Invariant::I2, "1 were said to be cancelled, 0 are");

    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.fail("a", 1, 1, false);
    script.row(1, "failed", "a", 1);
    for number in [2, 3] {
        script.call(Operation::Replay { dead_letter: id(1) }, ok(Answer::Replayed(id(number))));
        script.claim("a", number, 1);
        script.complete("a", number, 1, true);
        script.row(number, "done", "a", 1).replay_of = Some(id(1));
    }
    script.breaks(Invariant::I4, "2 replays of one dead letter");
}

#[test]
fn more_at_once_than_the_limit_is_found() {
    let both = |max_running: i32, ends_first: bool| {
        let mut script = Script::default();
        script.send(1);
        script.send(2);
        script.claim("a", 1, 1);
        if ends_first {
            script.complete("a", 1, 1, true);
        }
        script.claim("b", 2, 1);
        if !ends_first {
            script.complete("a", 1, 1, true);
        }
        script.complete("b", 2, 1, true);
        script.row(1, "done", "a", 1);
        script.row(2, "done", "b", 1);
        script.rows.limits = vec![LimitRow { route: "test/work/0".to_owned(), by_tenant: true, max_running }];
        script
    };
    both(2, false).passes();
    both(1, true).passes();
    both(1, false).breaks(Invariant::Limit, "2 acme ran at once");
}

#[test]
fn message_that_is_given_up_before_its_time_breaks_i2() {
    let given_up = |early_us: i64| {
        let mut script = Script::default();
        script.send(1);
        let row = script.row(1, "failed", "", 0);
        row.expires_us = row.done_us.map(|done| done + early_us);
        script
    };
    given_up(0).passes();
    given_up(1).breaks(Invariant::I2, "for no reason");
}
