//! Prints what a permit costs: `cargo run --release -p cogo-supervision --example guard_cost`.

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use cogo_supervision::{
    breaker::{Breaker, Settings as BreakerSettings},
    bulkhead::{Bulkhead, Settings as BulkheadSettings},
    clock::Clock,
    pool::{Picker, Strategy},
};

const CALLS: u32 = 1_000_000;
const THREADS: u32 = 2;

/// Mean nanoseconds of one call.
fn measure(mut call: impl FnMut()) -> f64 {
    for _ in 0..CALLS / 10 {
        call();
    }
    let begun = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    nanoseconds(begun.elapsed(), CALLS)
}

/// Mean nanoseconds of one call while as many threads call as the machine of the tests has cores.
fn measure_together(call: impl Fn() + Sync) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..CALLS {
                    call();
                }
            });
        }
    });
    nanoseconds(begun.elapsed(), CALLS * THREADS)
}

fn nanoseconds(elapsed: Duration, calls: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(calls)
}

fn show(what: &str, nanoseconds: f64) {
    println!("{what:<58} {nanoseconds:>8.1} ns");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let breaker = Breaker::new("closed", BreakerSettings::default(), Clock::system())?;
    let call = || {
        if let Ok(permit) = breaker.acquire() {
            permit.success();
        }
    };
    show("breaker, closed: permit and success", measure(call));
    show(&format!("the same from {THREADS} threads, per call"), measure_together(call));
    let open = Breaker::new("open", BreakerSettings::default(), Clock::system())?;
    open.trip("measured");
    show("breaker, open: refusal", measure(|| drop(black_box(open.acquire()))));

    let bulkhead = Bulkhead::new(BulkheadSettings::default());
    let enter = || drop(black_box(bulkhead.try_enter("tenant")));
    show("bulkhead, free: entry and leaving", measure(enter));
    show(&format!("the same from {THREADS} threads, per call"), measure_together(enter));

    let candidates: Vec<(u64, usize)> = (0..100).map(|key| (key, 3)).collect();
    for strategy in [Strategy::RoundRobin, Strategy::LeastLoaded, Strategy::Random, Strategy::PowerOfTwo] {
        let mut picker = Picker::new(strategy, 1);
        let pick = || {
            black_box(picker.pick(black_box(&candidates)));
        };
        show(&format!("picking one of 100, {strategy:?}"), measure(pick));
    }
    Ok(())
}
