//! A short storm: everything at once, as in the long run.

use std::time::Duration;

use cogo_bus_check::{StormSettings, storm};

use crate::support::seed;

#[tokio::test(flavor = "multi_thread")]
async fn short_storm_breaks_no_promise() {
    let settings = StormSettings {
        program: (env!("CARGO_BIN_EXE_cogo-bus-check").into(), Vec::new()),
        messages: 3_000,
        round: 1_500,
        seed: seed(),
        lease: Duration::from_millis(1_000),
        sabotage: None,
    };
    let tally = Box::pin(storm(&settings, |_| {})).await.unwrap();
    assert_eq!(tally.violations, 0, "seed {}: {}", settings.seed, tally.reports.join("\n"));
    assert_eq!(tally.rounds_unfinished, 0, "{tally:?}");
    assert!(tally.messages >= settings.messages && tally.unknown > 0 && tally.rounds >= 2, "{tally:?}");
    println!("{tally:?}");
}
