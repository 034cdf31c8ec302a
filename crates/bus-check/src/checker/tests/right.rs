//! Histories of a correct bus, unknown outcomes among them: nothing is found.

use super::script::{Script, claiming, completing, completing_with, done, held, id, ok, refused, unknown};
use crate::{Accepted, Answer, Invariant, Operation, Sent};

fn keyed(key: &str) -> Sent {
    Sent { tenant: "acme".to_owned(), key: Some(key.to_owned()), ..Sent::default() }
}

fn sent_with_id(number: u128) -> Sent {
    Sent { id: Some(id(number)), tenant: "acme".to_owned(), key: None, mark: None }
}

#[test]
fn plain_life_of_a_message_passes() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1);
    script.passes();
}

#[test]
fn unknown_enqueue_may_or_may_not_exist() {
    for exists in [true, false] {
        let mut script = Script::default();
        script.call(Operation::Enqueue { messages: vec![sent_with_id(1), sent_with_id(2)] }, unknown());
        script.call(
            Operation::Enqueue { messages: vec![Sent { tenant: "acme".to_owned(), ..Sent::default() }] },
            unknown(),
        );
        if exists {
            for number in [1, 2, 3] {
                script.claim("a", number, 1);
                script.complete("a", number, 1, true);
                script.row(number, "done", "a", 1);
            }
        }
        script.passes();
    }
}

#[test]
fn unknown_enqueue_under_a_key_may_be_the_first() {
    for first_was_stored in [true, false] {
        let mut script = Script::default();
        script.call(Operation::Enqueue { messages: vec![keyed("k")] }, unknown());
        script.send_as(1, keyed("k"), first_was_stored);
        script.send_as(1, keyed("k"), true);
        script.claim("a", 1, 1);
        script.complete("a", 1, 1, true);
        script.row(1, "done", "a", 1).idempotency_key = Some("k".to_owned());
        script.passes();
    }
}

#[test]
fn unknown_completion_may_or_may_not_be_recorded() {
    for recorded in [true, false] {
        let mut script = Script::default();
        script.send(1);
        script.claim("a", 1, 1);
        script.call(completing("a", 1, 1), unknown());
        if recorded {
            // what it says when it asks again
            script.complete("a", 1, 1, false);
            script.row(1, "done", "a", 1);
        } else {
            script.later(2_000);
            script.claim("b", 1, 2);
            script.complete("b", 1, 2, true);
            script.row(1, "done", "b", 2);
        }
        script.passes();
    }
}

#[test]
fn unknown_claim_explains_an_attempt_that_nobody_knows() {
    let mut script = Script::default();
    script.send(1);
    script.call(claiming("a"), unknown());
    script.later(2_000);
    script.claim("b", 1, 2);
    script.complete("b", 1, 2, true);
    script.row(1, "done", "b", 2);
    script.noted(1, 1, "a", Some(2_000));
    script.passes();
}

#[test]
fn late_completion_that_is_refused_passes() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.later(1_500);
    script.claim("b", 1, 2);
    script.complete("a", 1, 1, false);
    script.complete("b", 1, 2, true);
    script.row(1, "done", "b", 2);
    script.passes();
}

#[test]
fn released_failed_and_extended_attempts_pass() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    let asked = Operation::Release { holder: "a".to_owned(), held: vec![held(1, 1)] };
    script.call(asked, ok(Answer::Count(1)));
    script.claim("b", 1, 2);
    script.fail("b", 1, 2, true);
    script.claim("a", 1, 3);
    let asked = Operation::Extend { holder: "a".to_owned(), held: vec![held(1, 3)], lease_ms: 5_000 };
    script.call(asked, ok(Answer::Still(vec![id(1)])));
    script.later(3_000);
    script.complete("a", 1, 3, true);
    script.row(1, "done", "a", 3).released = 1;
    script.passes();
}

#[test]
fn follow_ups_come_with_the_completion_and_dead_letters_are_replayed() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.call(completing_with("a", 1, 1, 1), ok(Answer::Still(vec![id(1)])));
    script.claim("a", 2, 1);
    script.fail("a", 2, 1, false);
    script.call(Operation::Replay { dead_letter: id(2) }, ok(Answer::Replayed(id(3))));
    script.claim("a", 3, 1);
    script.complete("a", 3, 1, true);
    script.row(1, "done", "a", 1);
    let child = script.row(2, "failed", "a", 1);
    (child.parent_id, child.root_id) = (Some(id(1)), id(1));
    let replay = script.row(3, "done", "a", 1);
    (replay.replay_of, replay.root_id) = (Some(id(2)), id(1));
    script.passes();
}

#[test]
fn refused_enqueue_that_left_nothing_and_cancel_pass() {
    let mut script = Script::default();
    script.call(Operation::Enqueue { messages: vec![sent_with_id(9)] }, refused());
    // refused and sent again
    script.call(Operation::Enqueue { messages: vec![sent_with_id(1)] }, refused());
    script.send_as(1, sent_with_id(1), false);
    script.claim("a", 1, 1);
    script.call(Operation::Cancel { root: id(1) }, ok(Answer::Count(1)));
    script.complete("a", 1, 1, false);
    script.row(1, "cancelled", "a", 1);
    script.passes();
}

#[test]
fn rows_that_retention_removed_after_their_end_pass() {
    let mut script = Script::default();
    script.send(1);
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.send_as(2, keyed("k"), false);
    script.event(2, "message_failed");
    script.call(Operation::Retain { keep_ms: 0 }, ok(Answer::Count(2)));
    // the key is free again
    script.send_as(3, keyed("k"), false);
    script.claim("a", 3, 1);
    script.complete("a", 3, 1, true);
    script.row(3, "done", "a", 1).idempotency_key = Some("k".to_owned());
    script.passes();
}

#[test]
fn holder_that_is_declared_gone_loses_its_lease_at_once() {
    let mut script = Script::default();
    script.send(1);
    script.claim("w/0#1", 1, 1);
    let asked = Operation::Register { name: "w".to_owned(), slot: 0 };
    script.call(asked, ok(Answer::Member { holder: "w/0#2".to_owned(), epoch: 2 }));
    script.claim("w/0#2", 1, 2);
    script.complete("w/0#2", 1, 2, true);
    script.agent(2);
    script.row(1, "done", "w/0#2", 2);
    script.passes();
}

#[test]
fn one_answer_for_two_messages_of_a_batch_under_one_key_passes() {
    let mut script = Script::default();
    let answers = vec![Accepted { id: id(1), duplicate: false }, Accepted { id: id(1), duplicate: true }];
    script.call(Operation::Enqueue { messages: vec![keyed("k"), keyed("k")] }, ok(Answer::Enqueued(answers)));
    script.claim("a", 1, 1);
    script.complete("a", 1, 1, true);
    script.row(1, "done", "a", 1).idempotency_key = Some("k".to_owned());
    script.passes();
}

#[test]
fn group_that_runs_in_order_passes_and_concurrent_senders_have_none() {
    let mut script = Script::default();
    script.send(1);
    script.send(2);
    for number in [1, 2] {
        script.claim("a", number, 1);
        script.complete("a", number, 1, true);
        script.row(number, "done", "a", 1).group_key = Some("g".to_owned());
    }
    script.passes();

    let mut script = Script::default();
    script.send(1);
    script.send(2);
    // sent at the same time
    script.calls[1].invoked_us = script.calls[0].invoked_us;
    for number in [2, 1] {
        script.claim("a", number, 1);
        script.complete("a", number, 1, true);
        script.row(number, "done", "a", 1).group_key = Some("g".to_owned());
    }
    script.passes();
}

#[test]
fn counters_of_more_messages_than_the_bus_counts_are_not_judged() {
    let mut script = Script::default();
    done(&mut script, 1);
    // those of former histories, which nobody judges again, are counted first
    script.rows.counted = usize::try_from(cogo_bus_core::COUNT_CAP).unwrap();
    script.rows.shown.insert("done".to_owned(), 0);
    script.passes();
}

#[test]
fn attempt_may_be_given_to_nobody_if_the_time_passed_in_that_moment() {
    let with_attempts = |attempts: i16| {
        let mut script = Script::default();
        script.send(1);
        script.claim("a", 1, 1);
        script.fail("a", 1, 1, true);
        let row = script.row(1, "failed", "a", attempts);
        row.expires_us = row.done_us;
        script
    };
    with_attempts(2).passes();
    with_attempts(3).breaks(Invariant::I3, "2 of 3 attempts were given to nobody");
}
