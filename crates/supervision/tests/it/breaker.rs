//! Circuit breakers: when they open, whom they let through, and what they tell others.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use cogo_supervision::{
    breaker::{Breaker, CallError, Cause, Change, Core, Outcome, Phase, Refused, Settings, Shared, SharedPhase},
    clock::{Clock, ManualClock},
};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const FAST: Duration = Duration::from_millis(1);

/// Without jitter, so that times are exact.
fn settings() -> Settings {
    Settings { jitter: 0.0, ..Settings::default() }
}

fn core(settings: Settings) -> Core {
    Core::new(settings, 1).unwrap()
}

fn call(core: &mut Core, now: Duration, outcome: Outcome, took: Duration) {
    let ticket = core.admit(now).unwrap();
    core.record(now, ticket, outcome, took);
}

fn changes(core: &mut Core) -> Vec<Change> {
    std::iter::from_fn(|| core.poll_change()).collect()
}

fn opened(core: &mut Core, now: Duration) {
    core.trip(now, "test");
    assert_eq!(core.phase(), Phase::Open);
}

#[test]
fn failures_in_a_row_open_it() {
    let mut core = core(settings());
    for _ in 0..4 {
        call(&mut core, SECOND, Outcome::Failure, FAST);
    }
    call(&mut core, SECOND, Outcome::Success, FAST);
    for _ in 0..4 {
        call(&mut core, SECOND, Outcome::Failure, FAST);
    }
    assert_eq!(core.phase(), Phase::Closed, "a success in between begins a new row");
    call(&mut core, SECOND, Outcome::Failure, FAST);
    assert_eq!(core.admit(SECOND), Err(Refused::Open { retry_after: SECOND * 5 }));
    let [change] = changes(&mut core).try_into().unwrap();
    assert_eq!((change.from, change.to, change.round), (Phase::Closed, Phase::Open, 1));
    assert_eq!(change.cause, Cause::ConsecutiveFailures { failures: 5 });
}

#[test]
fn a_share_of_failures_opens_it_only_with_enough_calls_in_the_window() {
    let mut core = core(Settings { consecutive_failures: 0, ..settings() });
    for second in 0..9 {
        let outcome = if second % 2 == 0 { Outcome::Failure } else { Outcome::Success };
        call(&mut core, SECOND, outcome, FAST);
    }
    assert_eq!(core.phase(), Phase::Closed, "five of nine failed, but ten are needed");
    call(&mut core, SECOND * 20, Outcome::Failure, FAST);
    assert_eq!(core.phase(), Phase::Closed, "the nine are forgotten");
    assert_eq!(core.counts(SECOND * 20), (1, 1, 0));
    for outcome in [Outcome::Success; 5].into_iter().chain([Outcome::Failure; 4]) {
        call(&mut core, SECOND * 20, outcome, FAST);
    }
    assert_eq!(changes(&mut core)[0].cause, Cause::FailureRate { failed: 5, calls: 10 });
}

#[test]
fn a_share_of_slow_calls_opens_it_though_all_succeed() {
    let mut core = core(settings());
    for took in [1, 1].into_iter().chain([5; 8]) {
        call(&mut core, SECOND, Outcome::Success, SECOND * took);
    }
    assert_eq!(changes(&mut core)[0].cause, Cause::SlowRate { slow: 8, calls: 10 });
}

#[test]
fn openings_grow_up_to_the_longest_and_start_anew_after_a_quiet_window() {
    let mut core = core(Settings { half_open_successes: 1, ..settings() });
    let mut now = SECOND;
    opened(&mut core, now);
    let mut lengths = Vec::new();
    for _ in 0..6 {
        let Err(Refused::Open { retry_after }) = core.admit(now) else { panic!("it is open") };
        lengths.push(retry_after.as_secs());
        now += retry_after;
        call(&mut core, now, Outcome::Failure, FAST);
    }
    assert_eq!(lengths, [5, 10, 20, 40, 60, 60]);
    now += SECOND * 60;
    call(&mut core, now, Outcome::Success, FAST);
    assert_eq!(core.phase(), Phase::Closed);
    now += SECOND * 9;
    opened(&mut core, now);
    assert_eq!(core.admit(now), Err(Refused::Open { retry_after: SECOND * 60 }), "9 s are not a quiet window");
    core.reset(now, "test");
    now += SECOND * 10;
    opened(&mut core, now);
    assert_eq!(core.admit(now), Err(Refused::Open { retry_after: SECOND * 5 }));
}

#[test]
fn jitter_only_lengthens_and_differs_by_seed() {
    let length = |seed| {
        let mut core = Core::new(Settings::default(), seed).unwrap();
        core.trip(SECOND, "test");
        let Err(Refused::Open { retry_after }) = core.admit(SECOND) else { panic!("it is open") };
        retry_after
    };
    let lengths: Vec<Duration> = (0..200).map(length).collect();
    assert!(lengths.iter().all(|length| (SECOND * 5..=SECOND * 6).contains(length)));
    let distinct: std::collections::BTreeSet<Duration> = lengths.iter().copied().collect();
    assert!(distinct.len() > 190, "only {} different lengths", distinct.len());
}

#[test]
fn half_open_lets_as_many_through_as_there_are_permits_and_needs_its_successes() {
    let mut core = core(Settings { half_open_permits: 2, half_open_successes: 3, ..settings() });
    opened(&mut core, Duration::ZERO);
    let now = SECOND * 5;
    let (one, two) = (core.admit(now).unwrap(), core.admit(now).unwrap());
    assert_eq!((core.admit(now), core.trials()), (Err(Refused::Trying), 2));
    core.give_back(one);
    let three = core.admit(now).unwrap();
    core.record(now, two, Outcome::Success, FAST);
    core.record(now, three, Outcome::Success, FAST);
    assert_eq!(core.phase(), Phase::HalfOpen, "what was given back counts as nothing");
    call(&mut core, now, Outcome::Success, FAST);
    assert_eq!(core.phase(), Phase::Closed);
    let causes: Vec<Cause> = changes(&mut core).into_iter().skip(1).map(|change| change.cause).collect();
    assert_eq!(causes, [Cause::WaitOver, Cause::TrialsSucceeded { successes: 3 }]);
}

#[test]
fn a_late_outcome_of_an_earlier_state_counts_for_nothing() {
    let mut core = core(Settings { half_open_successes: 1, ..settings() });
    let from_closed = core.admit(Duration::ZERO).unwrap();
    opened(&mut core, Duration::ZERO);
    let trial = core.admit(SECOND * 5).unwrap();
    core.record(SECOND * 5, from_closed, Outcome::Failure, FAST);
    assert_eq!(core.phase(), Phase::HalfOpen);
    core.give_back(from_closed);
    assert_eq!(core.admit(SECOND * 5), Err(Refused::Trying), "nor does it give back what is not its own");
    core.record(SECOND * 5, trial, Outcome::Success, FAST);
    assert_eq!(core.phase(), Phase::Closed);
}

#[test]
fn trials_that_hang_open_it_again() {
    let mut core = core(settings());
    opened(&mut core, Duration::ZERO);
    let _hangs = core.admit(SECOND * 5).unwrap();
    assert_eq!(core.admit(SECOND * 34), Err(Refused::Trying));
    assert_eq!(core.admit(SECOND * 35), Err(Refused::Open { retry_after: SECOND * 10 }));
    assert_eq!(changes(&mut core).last().unwrap().cause, Cause::NoVerdict);
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let check = |bad: Settings, setting: &str| assert_eq!(Core::new(bad, 1).unwrap_err().setting, setting);
    check(Settings { failure_rate: 0.0, ..settings() }, "failure_rate");
    check(Settings { failure_rate: f64::NAN, ..settings() }, "failure_rate");
    check(Settings { growth: 0.5, ..settings() }, "growth");
    check(Settings { longest_open: SECOND, ..settings() }, "longest_open");
    check(Settings { half_open_permits: 0, ..settings() }, "half_open_permits");
    check(Settings { jitter: 2.0, ..settings() }, "jitter");
}

/// Threads that call at once while it is half-open, some of which give their permit back.
#[test]
fn there_are_never_more_trials_than_permits_under_concurrency() {
    const PERMITS: u32 = 3;
    const THREADS: usize = 8;
    let hand = ManualClock::new();
    let limits = Settings { half_open_permits: PERMITS, half_open_successes: u32::MAX, ..settings() };
    let breaker = Breaker::new("stress", limits, hand.clock()).unwrap();
    breaker.trip("test");
    hand.advance(SECOND * 5);
    let (inside, most, let_in) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let begin = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (breaker, begin) = (&breaker, &begin);
            let (inside, most, let_in) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&let_in));
            scope.spawn(move || {
                begin.wait();
                for round in 0..5_000 {
                    let Ok(permit) = breaker.acquire() else {
                        thread::yield_now();
                        continue;
                    };
                    let now_inside = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now_inside, Ordering::SeqCst);
                    let_in.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    if (thread + round) % 2 == 0 { permit.success() } else { drop(permit) }
                }
            });
        }
    });
    assert_eq!(breaker.phase(), Phase::HalfOpen);
    assert!(most.load(Ordering::SeqCst) <= PERMITS, "{} at once", most.load(Ordering::SeqCst));
    assert!(let_in.load(Ordering::SeqCst) > 1_000, "the test let only {} through", let_in.load(Ordering::SeqCst));
    let permits: Vec<_> = (0..PERMITS).map(|_| breaker.acquire().unwrap()).collect();
    assert_eq!(breaker.acquire().unwrap_err(), Refused::Trying, "none was lost and none was made");
    drop(permits);
}

#[tokio::test]
async fn calls_are_counted_refused_and_replaced() {
    let hand = ManualClock::new();
    let breaker = Breaker::new("mail", Settings { consecutive_failures: 2, ..settings() }, hand.clock()).unwrap();
    let mut told = breaker.changes();
    let malformed = breaker.call_if(async { Err::<(), _>("malformed") }, |error| *error != "malformed").await;
    assert!(matches!(malformed, Err(CallError::Failed("malformed"))));
    for _ in 0..2 {
        assert!(matches!(breaker.call(async { Err::<(), _>("down") }).await, Err(CallError::Failed("down"))));
    }
    let mut called = false;
    let instead = breaker.call_or(
        async {
            called = true;
            Ok::<_, &str>("fresh")
        },
        |error| async move {
            assert!(matches!(error, CallError::Refused(Refused::Open { .. })));
            "from the cache"
        },
    );
    assert_eq!(instead.await, "from the cache");
    assert!(!called, "an open breaker makes no call");
    assert_eq!(told.recv().await.unwrap().cause, Cause::ConsecutiveFailures { failures: 2 });

    hand.advance(SECOND * 5);
    drop(breaker.call(std::future::pending::<Result<(), &str>>()));
    for _ in 0..2 {
        breaker.call(async { Ok::<_, &str>(()) }).await.unwrap();
    }
    assert_eq!(breaker.phase(), Phase::Closed);
    assert_eq!(told.recv().await.unwrap().to, Phase::HalfOpen);
    assert_eq!(told.recv().await.unwrap().to, Phase::Closed);
}

#[test]
fn an_opening_and_its_end_reach_the_others_through_the_record() {
    let (one_hand, other_hand) = (ManualClock::new(), ManualClock::new());
    other_hand.advance(SECOND * 1000);
    let breaker = |clock: Clock| Breaker::with_seed("shared", settings(), clock, 1).unwrap();
    let (one, other) = (breaker(one_hand.clock()), breaker(other_hand.clock()));
    one.trip("test");
    let record = one.export(50_000);
    assert_eq!(record, Shared { round: 1, phase: SharedPhase::Open, open_until_ms: 55_000, openings: 1 });
    assert_eq!(one.export(50_500), record, "telling it again changes nothing");

    assert!(other.merge(52_000, record));
    assert_eq!(other.acquire().unwrap_err(), Refused::Open { retry_after: SECOND * 3 });
    assert!(!other.merge(52_000, record), "what is known teaches nothing");
    other_hand.advance(SECOND * 3);
    for _ in 0..2 {
        other.acquire().unwrap().success();
    }
    let closed = other.export(55_000);
    assert_eq!((closed.round, closed.phase), (1, SharedPhase::Closed));
    assert!(one.merge(55_000, closed));
    assert_eq!(one.phase(), Phase::Closed);
    assert!(!one.merge(55_000, record), "the old record is outdone");
    assert_eq!(one.phase(), Phase::Closed);

    one.trip("again");
    assert!(other.merge(60_000, one.export(60_000)));
    assert_eq!(other.phase(), Phase::Open, "a new round outdoes the closing of the last");
}

#[test]
fn a_record_from_a_clock_that_is_far_ahead_does_not_close_the_door_for_ever() {
    let mut core = core(settings());
    let mad = Shared { round: 9, phase: SharedPhase::Open, open_until_ms: u64::MAX, openings: 1 };
    assert!(core.merge(SECOND, 1_000, mad));
    assert_eq!(core.admit(SECOND), Err(Refused::Open { retry_after: SECOND * 60 }));
}

#[derive(Debug, Clone)]
enum Step {
    Advance(u64),
    Call { succeeds: bool, slow: bool },
    Abandon,
    Trip,
    Merge { round: u64, closed: bool },
}

fn steps() -> impl proptest::strategy::Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u64..8_000).prop_map(Step::Advance),
        6 => (any::<bool>(), any::<bool>()).prop_map(|(succeeds, slow)| Step::Call { succeeds, slow }),
        2 => Just(Step::Abandon),
        1 => Just(Step::Trip),
        1 => (0_u64..5, any::<bool>()).prop_map(|(round, closed)| Step::Merge { round, closed }),
    ]
}

proptest! {
    #[test]
    fn changes_form_a_chain_rounds_never_fall_and_exports_only_grow(steps in prop::collection::vec(steps(), 1..200)) {
        let mut core = core(Settings { half_open_permits: 2, ..settings() });
        let mut now = Duration::ZERO;
        let (mut phase, mut round, mut told) = (Phase::Closed, 0, Shared::NEW);
        for step in steps {
            match step {
                Step::Advance(ms) => now += Duration::from_millis(ms),
                Step::Trip => core.trip(now, "test"),
                Step::Abandon => {
                    if let Ok(ticket) = core.admit(now) {
                        core.give_back(ticket);
                    }
                }
                Step::Call { succeeds, slow } => {
                    if let Ok(ticket) = core.admit(now) {
                        prop_assert!(core.trials() <= 2);
                        let outcome = if succeeds { Outcome::Success } else { Outcome::Failure };
                        core.record(now, ticket, outcome, if slow { SECOND * 9 } else { FAST });
                    }
                }
                Step::Merge { round, closed } => {
                    let phase = if closed { SharedPhase::Closed } else { SharedPhase::Open };
                    let shared_now = u64::try_from(now.as_millis()).unwrap();
                    let open_until_ms = if closed { 0 } else { shared_now + 500 };
                    let record = Shared { round, phase, open_until_ms, openings: 1 };
                    core.merge(now, shared_now, record);
                    prop_assert!(core.export(now, shared_now) >= record);
                }
            }
            for change in changes(&mut core) {
                prop_assert_eq!(change.from, phase);
                prop_assert!(change.round >= round);
                (phase, round) = (change.to, change.round);
            }
            prop_assert_eq!(core.phase(), phase);
            let exported = core.export(now, u64::try_from(now.as_millis()).unwrap());
            prop_assert!(exported >= told, "{:?} after {:?}", exported, told);
            told = exported;
        }
    }
}
