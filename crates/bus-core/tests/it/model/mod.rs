//! Random operations on the bus and on a plain model of it must agree on every answer and on all that can be seen.
//!
//! `PROPTEST_CASES=1000` makes a long run, `PROPTEST_RNG_SEED` repeats one.

mod changes;
mod claiming;
mod observing;
mod operations;
mod passing;
mod running;
mod state;

use cogo_bus_core::Bus;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use crate::model::{operations::operations, running::Run};

/// So many take half a minute at most.
const CASES: u32 = 60;

fn config() -> Config {
    let named = std::env::var_os("PROPTEST_CASES").and_then(|cases| cases.to_str()?.parse().ok());
    let config = Config {
        cases: named.unwrap_or(CASES),
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..Config::default()
    };
    match config.rng_seed {
        RngSeed::Fixed(_) => config,
        RngSeed::Random => Config { rng_seed: RngSeed::Fixed(Uuid::now_v7().as_u64_pair().1), ..config },
    }
}

/// A session alone has every function and statement planned already.
async fn one_session(url: &str) -> Bus {
    let options = url.parse::<PgConnectOptions>().unwrap().options([("plan_cache_mode", "force_generic_plan")]);
    Bus::new(PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn bus_and_model_agree() {
    let database = cogo_test_support::database().await;
    let bus = one_session(&database.url).await;
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let config = config();
        let seed = config.rng_seed;
        let agreed = TestRunner::new(config).run(&operations(), |operations| {
            handle.block_on(async {
                let mut run = Run::start(&bus).await;
                for operation in &operations {
                    run.step(operation).await?;
                }
                run.drain().await
            })
        });
        match agreed {
            Ok(()) => {}
            Err(TestError::Abort(reason)) => panic!("{reason}"),
            Err(TestError::Fail(reason, smallest)) => {
                let smallest: Vec<String> = smallest.iter().map(|operation| format!("  {operation:?}\n")).collect();
                panic!("PROPTEST_RNG_SEED={seed} finds\n{reason}\nafter\n{}", smallest.concat())
            }
        }
    });
}
