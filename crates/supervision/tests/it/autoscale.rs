//! The autoscaler on simulated queues: bounds, steadiness, speed, and decisions that explain themselves.

use std::time::Duration;

use cogo_supervision::autoscale::{Autoscaler, Decision, Limit, Sample, Settings, Source};
use proptest::prelude::*;

use crate::queue_world::{START_UP, TURN, World};

const SECOND: Duration = Duration::from_secs(1);

fn settings(max: u32) -> Settings {
    Settings { max, ..Settings::default() }
}

fn quiet(at: Duration, current: u32) -> Sample {
    Sample {
        at,
        current,
        ready: current,
        queued: 0,
        oldest_age: Duration::ZERO,
        in_flight: 0,
        ended: 0,
        over: SECOND * 3,
        service_time: Some(SECOND),
    }
}

fn sentences(world: &World) -> Vec<String> {
    let changes = world.changes.iter();
    changes.map(|(at, decision)| format!("{:.1} s: {}", at.as_secs_f64(), decision.sentence)).collect()
}

fn samples() -> impl Strategy<Value = Vec<(Sample, u64)>> {
    let large = prop_oneof![0_u64..200, any::<u64>()];
    let sample = (large.clone(), large.clone(), large.clone(), large, 0_u32..200, 0_u64..100_000);
    prop::collection::vec(sample, 1..80).prop_map(|raw| {
        let sample = |(queued, in_flight, ended, age, ready, passed): (u64, u64, u64, u64, u32, u64)| {
            let sample = Sample {
                ready,
                queued,
                in_flight,
                ended,
                oldest_age: Duration::from_millis(age),
                service_time: (age % 3 == 0).then(|| Duration::from_millis(ended)),
                ..quiet(Duration::ZERO, 0)
            };
            (sample, passed)
        };
        raw.into_iter().map(sample).collect()
    })
}

proptest! {
    #[test]
    fn the_count_never_leaves_its_bounds(
        min in 0_u32..10, more in 0_u32..50, first in 0_u32..100, brakes: bool, samples in samples(),
    ) {
        let hold = if brakes { SECOND * 3 } else { Duration::ZERO };
        let free = Settings {
            min, hold_up: hold, hold_down: hold, cool_down_up: hold, cool_down_down: hold,
            step_up: brakes.then_some(2), step_down: brakes.then_some(2), ..settings(min + more)
        };
        let mut scaler = Autoscaler::new(free).unwrap();
        let (mut at, mut current) = (Duration::ZERO, first);
        for (sample, passed) in samples {
            at += Duration::from_millis(passed);
            let decision = scaler.decide(Sample { at, current, ..sample });
            prop_assert!((min..=min + more).contains(&decision.desired), "{}", decision.sentence);
            if brakes && (min..=min + more).contains(&current) {
                prop_assert!(decision.desired.abs_diff(current) <= 2);
            }
            prop_assert!(decision.candidates.iter().all(|candidate| !candidate.exact.is_nan()));
            current = decision.desired;
        }
    }

}

proptest! {
    // each case is many minutes of a simulated queue
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Half of each period little arrives, the other half much; any length of period, any place of the samples in it.
    #[test]
    fn a_square_wave_changes_the_count_at_most_twice_a_period(
        half_s in 5_u32..240, low in 0_u32..20, high in 21_u32..200, turns in 1_u32..40, phase_ms in 0_u64..1_000,
    ) {
        let (service, phase) = (TURN * turns, Duration::from_millis(phase_ms));
        let mut world = World::new(settings(1_000), 1, service, phase);
        let (low, high, half) = (f64::from(low) / 2.0, f64::from(high) / 2.0, f64::from(half_s));
        // from nothing it takes a period to know the time of work
        world.run(half, low);
        world.run(half, high);
        for period in 0..5 {
            let before = world.changes.len();
            world.run(half, low);
            world.run(half, high);
            let changes = world.changes.len() - before;
            prop_assert!(changes <= 2, "{changes} in period {period}:\n{}", sentences(&world).join("\n"));
        }
    }

    #[test]
    fn constant_load_settles_and_stays(
        rate in 0_u32..200, turns in 1_u32..60, workers in 1_u32..100, phase_ms in 0_u64..1_000,
    ) {
        let (service, phase) = (TURN * turns, Duration::from_millis(phase_ms));
        let mut world = World::new(settings(1_000), workers, service, phase);
        world.run(300.0, f64::from(rate) / 2.0);
        let (settled, changes) = (world.desired, world.changes.len());
        world.run(600.0, f64::from(rate) / 2.0);
        prop_assert_eq!(world.changes.len(), changes, "{}", sentences(&world).join("\n"));
        let needed = f64::from(rate) / 2.0 * service.as_secs_f64();
        prop_assert!(f64::from(settled) >= needed, "{settled} workers for a load of {needed:.1}");
        prop_assert!(f64::from(settled) <= needed / 0.7 * 1.6 + 2.0, "{settled} workers for a load of {needed:.1}");
    }
}

#[test]
fn from_a_load_step_to_enough_working_workers_takes_less_than_ten_seconds() {
    let mut slowest = Duration::ZERO;
    for (rate, service_ms) in [(20.0, 200), (50.0, 100), (100.0, 50), (8.0, 1_000), (200.0, 400)] {
        for phase_ms in [0, 250, 500, 750, 950] {
            let service = Duration::from_millis(service_ms);
            let mut world = World::new(settings(1_000), 1, service, Duration::from_millis(phase_ms));
            world.run(60.0, 0.5);
            let step = world.now;
            let needed = rate * service.as_secs_f64();
            while f64::from(world.ready()) < needed {
                world.run(0.05, rate);
                assert!(
                    world.now - step < SECOND * 10,
                    "{rate}/s of {service_ms} ms\n{}",
                    sentences(&world).join("\n")
                );
            }
            slowest = slowest.max(world.now - step);
        }
    }
    println!("slowest of all: {slowest:?}, of which {START_UP:?} are the start of a worker");
}

/// Nobody tells the time of work; arrivals are uneven, since even ones can fall into step with the samples.
#[test]
fn the_time_of_work_follows_from_what_is_under_way_and_what_ends() {
    for (rate, service_ms, workers) in [(20.0, 200, 10), (4.0, 2_000, 15), (60.0, 50, 8), (1.0, 1_000, 3)] {
        let service = Duration::from_millis(service_ms);
        let mut world = World::new(settings(1_000), workers, service, Duration::ZERO);
        world.measures_service = false;
        world.run_with(300.0, |now| rate * (1.0 + 0.5 * (now * 1.7).sin() + 0.4 * (now * 0.61).sin()));
        let measured = world.last.as_ref().unwrap().inputs.service_ms;
        let ratio = measured / service.as_secs_f64() / 1000.0;
        assert!((0.7..1.3).contains(&ratio), "{rate}/s of {service_ms} ms: measured {measured:.0} ms");
    }
}

#[test]
fn on_a_ramp_the_forecast_comes_before_the_load() {
    let ready_when_load_passes = |horizon: Duration| {
        let with = Settings { horizon, ..settings(1_000) };
        let mut world = World::new(with, 8, Duration::from_millis(500), Duration::ZERO);
        world.run(60.0, 10.0);
        let start = world.now.as_secs_f64();
        world.run_with(120.0, |now| 10.0 + (now - start) / 2.0);
        world
    };
    let world = ready_when_load_passes(SECOND * 20);
    let by_forecast = |decision: &Decision| {
        let forecast = decision.candidates.iter().find(|candidate| candidate.source == Source::Forecast);
        forecast.is_some_and(|forecast| forecast.counts && forecast.wanted == decision.wanted)
    };
    assert!(world.changes.iter().any(|(_, decision)| by_forecast(decision)), "{}", sentences(&world).join("\n"));
    assert!(
        world.desired > ready_when_load_passes(Duration::ZERO).desired,
        "it is ahead of one that does not look ahead"
    );
}

#[test]
fn a_forecast_never_lowers_the_count() {
    let mut world = World::new(settings(1_000), 30, Duration::from_millis(500), Duration::ZERO);
    world.run(60.0, 40.0);
    let start = world.now.as_secs_f64();
    for _ in 0..80 {
        world.run_with(1.0, |now| (40.0 - (now - start) / 2.0).max(0.0));
        let last = world.last.as_ref().unwrap();
        let forecast = last.candidates.iter().find(|candidate| candidate.source == Source::Forecast).unwrap();
        assert!(!forecast.counts || forecast.wanted > last.inputs.current, "{}", forecast.why);
    }
}

#[test]
fn an_old_message_asks_for_more_once_the_last_change_could_show() {
    let mut scaler = Autoscaler::new(Settings { hold_up: Duration::ZERO, ..settings(50) }).unwrap();
    let stuck = |second: u64, current| Sample {
        queued: 40,
        in_flight: 0,
        oldest_age: SECOND * 15,
        service_time: Some(Duration::from_millis(10)),
        ..quiet(SECOND * u32::try_from(second).unwrap(), current)
    };
    let first = scaler.decide(stuck(0, 4));
    assert_eq!((first.desired, first.wanted), (6, 6), "{}", first.sentence);
    assert!(first.sentence.contains("age of the oldest"), "{}", first.sentence);
    for second in 1..10 {
        assert_eq!(scaler.decide(stuck(second, 6)).desired, 6);
    }
    assert_eq!(scaler.decide(stuck(10, 6)).desired, 9);

    let mut few = Autoscaler::new(Settings { hold_up: Duration::ZERO, ..settings(50) }).unwrap();
    let one_left = Sample { queued: 1, ..stuck(0, 4) };
    assert_eq!(few.decide(one_left).desired, 4, "more workers than messages help nobody");
}

#[test]
fn whoever_works_is_not_ended() {
    let mut scaler = Autoscaler::new(settings(10)).unwrap();
    for second in 0..300 {
        let busy = Sample { in_flight: 5, service_time: None, ..quiet(SECOND * second, 5) };
        assert_eq!(scaler.decide(busy).desired, 5);
    }
}

#[test]
fn a_difference_within_the_tolerance_changes_nothing() {
    let mut scaler = Autoscaler::new(Settings { hold_up: Duration::ZERO, ..settings(100) }).unwrap();
    // 7.49 per second at 1 s each and 70 % are 10.7 workers
    let near = Sample { ended: 749, over: SECOND * 100, ..quiet(Duration::ZERO, 10) };
    assert_eq!(scaler.decide(near).desired, 10);
    let beyond = Sample { ended: 791, at: SECOND, over: SECOND * 100, ..near };
    assert_eq!(scaler.decide(beyond).desired, 12);
}

#[test]
fn steps_and_cool_downs_hold_back_and_say_so() {
    let limits = Settings { hold_up: Duration::ZERO, step_up: Some(4), cool_down_up: SECOND * 3, ..settings(20) };
    let mut scaler = Autoscaler::new(limits).unwrap();
    let flood = |second: u32, current| Sample { ended: 2100, ..quiet(SECOND * second, current) };
    let first = scaler.decide(flood(0, 1));
    assert_eq!(first.desired, 5);
    assert_eq!(first.limits, [Limit::Max { wanted: 1000 }, Limit::Step { wanted: 20 }]);
    let second = scaler.decide(flood(1, 5));
    assert_eq!((second.desired, &second.limits[1]), (5, &Limit::CoolDown { left_ms: 2000 }));
    assert_eq!(scaler.decide(flood(3, 5)).desired, 9);
}

#[test]
fn what_was_wanted_while_it_was_watched_is_given_and_said() {
    let mut scaler = Autoscaler::new(settings(20)).unwrap();
    for (ended, second) in [(14, 0), (14, 1), (13, 2)] {
        assert!(!scaler.decide(Sample { ended: ended * 3, ..quiet(SECOND * second, 10) }).is_change());
    }
    let given = scaler.decide(Sample { ended: 9 * 3, ..quiet(SECOND * 3, 10) });
    assert_eq!((given.wanted, given.desired), (13, 19), "{}", given.sentence);
    assert_eq!(given.limits, [Limit::Lately { wanted: 19 }]);
    assert!(given.sentence.contains("19 were wanted at times"), "{}", given.sentence);
}

#[test]
fn moved_bounds_are_kept_at_once() {
    let mut scaler = Autoscaler::new(Settings { min: 2, ..settings(4) }).unwrap();
    assert_eq!(scaler.decide(quiet(Duration::ZERO, 9)).desired, 4);
    assert_eq!(scaler.decide(quiet(SECOND, 0)).desired, 2);
}

#[test]
fn a_decision_explains_itself_and_survives_its_row() {
    let mut world = World::new(settings(50), 1, Duration::from_millis(200), Duration::ZERO);
    world.run(30.0, 1.0);
    world.run(20.0, 40.0);
    let (_, decision) = &world.changes[0];
    let sources: Vec<Source> = decision.candidates.iter().map(|candidate| candidate.source).collect();
    assert_eq!(sources, [Source::Arrivals, Source::Backlog, Source::InFlight, Source::Forecast]);
    assert!(decision.sentence.starts_with("From 1 to "), "{}", decision.sentence);
    assert!(decision.sentence.contains("because of arrivals"), "{}", decision.sentence);
    let last = world.last.as_ref().unwrap();
    assert!(last.sentence.starts_with("Stays at "), "{}", last.sentence);
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let check = |bad: Settings, setting: &str| assert_eq!(Autoscaler::new(bad).unwrap_err().setting, setting);
    check(Settings { min: 3, ..settings(2) }, "min");
    check(Settings { utilisation: f64::NAN, ..settings(2) }, "utilisation");
    check(Settings { per_worker: 0, ..settings(2) }, "per_worker");
    check(Settings { step_up: Some(0), ..settings(2) }, "step_up");
}
