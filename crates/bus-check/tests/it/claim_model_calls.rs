//! Ends, extensions and reclaims in every order of their statements, locks and commits; and each mistake that is found.

use cogo_bus_check::{CallDefect, CallModel, explore};

/// Two messages of one claim, each with one attempt, and two transactions at once.
const TWO: CallModel = CallModel {
    messages: 2,
    max_attempts: 1,
    lease: 1,
    calls: 2,
    failures: false,
    limited: false,
    end_in_two: false,
    reads_claims_again: false,
    defect: CallDefect::None,
};

/// One message that runs again, perhaps beside its first attempt, and leases that end at different times.
const AGAIN: CallModel = CallModel { messages: 1, max_attempts: 2, lease: 2, failures: true, ..TWO };

fn check(model: CallModel) {
    match explore(&model) {
        // a world that is too small proves nothing
        Ok(explored) => assert!(explored.states > 1_000, "{explored:?}"),
        Err(broken) => panic!("{model:?}: {broken}"),
    }
}

fn find(model: CallModel, defect: CallDefect, broken: &str) {
    match explore(&CallModel { defect, ..model }) {
        Ok(explored) => panic!("{defect:?} was not found in {explored:?}"),
        Err(counterexample) => assert!(counterexample.broken.contains(broken), "{defect:?}: {counterexample}"),
    }
}

#[test]
fn two_transactions_keep_every_promise() {
    check(TWO);
}

#[test]
fn what_runs_again_keeps_every_promise() {
    check(AGAIN);
    check(CallModel { lease: 1, calls: 3, ..AGAIN });
}

#[test]
fn ends_in_two_transactions_keep_every_promise() {
    check(CallModel { end_in_two: true, ..TWO });
    check(CallModel { end_in_two: true, ..AGAIN });
}

#[test]
fn ends_that_read_their_claims_again_keep_every_promise() {
    check(CallModel { reads_claims_again: true, ..TWO });
    check(CallModel { reads_claims_again: true, ..AGAIN });
}

#[test]
fn ends_that_wait_for_a_limit_keep_every_promise() {
    check(CallModel { limited: true, ..TWO });
    check(CallModel { limited: true, ..AGAIN });
}

#[test]
fn every_mistake_of_an_end_is_found() {
    find(TWO, CallDefect::EndTrustsItsSnapshot, "two completions");
    find(CallModel { messages: 3, calls: 1, ..TWO }, CallDefect::EndCountsWhatWasAsked, "exactly one");
    find(TWO, CallDefect::EndIgnoresTheVersion, "exactly one");
    // what failed runs again before it is counted off
    find(CallModel { end_in_two: true, ..AGAIN }, CallDefect::EndIgnoresTheAttempt, "exactly one");
    let reading = CallModel { reads_claims_again: true, ..TWO };
    find(reading, CallDefect::EndCountsEveryClaimItReads, "exactly one");
}

#[test]
fn every_mistake_of_an_extension_is_found() {
    find(TWO, CallDefect::SplitKeepsTheVersion, "exactly one");
    find(CallModel { lease: 2, ..TWO }, CallDefect::SplitDoesNotReadAgain, "live owner");
    find(CallModel { messages: 3, ..TWO }, CallDefect::SplitForgetsWhatIsLocked, "exactly one");
    find(AGAIN, CallDefect::ExtensionLeavesLockedClaims, "live owner");
}

#[test]
fn every_mistake_of_a_reclaim_is_found() {
    find(AGAIN, CallDefect::ReclaimIgnoresLaterLeases, "live owner");
    find(AGAIN, CallDefect::ReclaimTrustsItsSnapshot, "live owner");
    find(TWO, CallDefect::ReclaimForgetsWhatIsLocked, "exactly one");
}
