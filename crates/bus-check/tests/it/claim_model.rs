//! Every state of the model of claims keeps the promises, and each mistake that could be made is found.

use cogo_bus_check::{ClaimModel, Defect, explore};

const WORLD: ClaimModel = ClaimModel {
    messages: 2,
    workers: 2,
    max_attempts: 2,
    lease: 1,
    batch: 2,
    in_two_steps: false,
    defect: Defect::None,
};

/// One attempt, so that what may come between two steps can be visited in full.
const TWO_STEPS: ClaimModel = ClaimModel { max_attempts: 1, in_two_steps: true, ..WORLD };

fn check(model: ClaimModel) {
    match explore(&model) {
        // a world that is too small proves nothing
        Ok(explored) => assert!(explored.states > 1_000, "{explored:?}"),
        Err(broken) => panic!("{broken}"),
    }
}

fn find(model: ClaimModel, defect: Defect, broken: &str) {
    match explore(&ClaimModel { defect, ..model }) {
        Ok(explored) => panic!("{defect:?} was not found in {explored:?}"),
        Err(counterexample) => assert!(counterexample.broken.contains(broken), "{defect:?}: {counterexample}"),
    }
}

#[test]
fn batches_of_two_workers_keep_every_promise() {
    check(WORLD);
}

#[test]
fn three_workers_keep_every_promise() {
    check(ClaimModel { messages: 1, workers: 3, max_attempts: 3, lease: 2, ..WORLD });
}

#[test]
fn ends_and_extensions_that_come_between_each_other_keep_every_promise() {
    check(TWO_STEPS);
}

#[test]
fn every_mistake_is_found() {
    find(WORLD, Defect::EndIgnoresAttempt, "late one");
    find(WORLD, Defect::EndIgnoresLease, "late one");
    find(WORLD, Defect::RefusalCountsDown, "exactly one");
    find(WORLD, Defect::ClaimKeepsReady, "exactly one");
    find(WORLD, Defect::ReclaimIgnoresRow, "exactly one");
    find(WORLD, Defect::ReclaimIgnoresLease, "two live owners");
    find(WORLD, Defect::ReclaimForgets, "exactly one");
    find(WORLD, Defect::FailureForgets, "exactly one");
    find(WORLD, Defect::CancelCanBeCompleted, "late one");
    find(WORLD, Defect::DelayedIsForgotten, "no way to the end");
    find(TWO_STEPS, Defect::ClaimIsRemembered, "exactly one");
}
