//! A worker that counts words, up to 64 texts at a time, with a policy for each kind of error.
//!
//! `DATABASE_URL=… cargo run -p cogo-service-runtime --example batch`, on a migrated database; then from psql:
//! `insert into public.agent_messages (service, role, shard, tenant, payload)
//!  select 'text', 'words', 0, 'default', jsonb_build_object('text', repeat('word ', n)) from generate_series(1, 1000) n;`
//! The policy changes without a build: `COGO_RETRY_RULES='empty: retry delay=1m max=3' cargo run …`.

use std::time::Duration;

use cogo_contracts::Route;
use cogo_service_runtime::{
    BatchHandler, BatchItem, Batching, Frame, HandlerError, NoSettings, PANIC, Retry, RetryPolicy, Service,
};
use serde::{Deserialize, Serialize};

const ROUTE: Route = Route::constant("text", "words");
/// Bytes beyond which a text is left to another try, when there may be fewer.
const MOST_BYTES: usize = 1_000_000;

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<Words>(env!("CARGO_PKG_VERSION"))
}

/// The process.
struct Words;

impl Service for Words {
    const NAME: &'static str = "text-words";
    const DOMAIN: &'static str = "text";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3091;
    const CAPABILITIES: &'static [&'static str] = &["words"];
    const ROUTE: Option<Route> = Some(ROUTE);
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        frame.batch_worker(Counter);
        Ok(())
    }
}

/// Counts the words of many texts at once.
struct Counter;

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
struct Count {
    words: usize,
}

impl BatchHandler for Counter {
    const ROUTE: Route = ROUTE;
    type Request = Text;
    type Reply = Count;

    fn batching(&self) -> Batching {
        Batching::new(64, Duration::from_millis(20)).by_tenant()
    }

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
            .on("empty", Retry::never())
            .on("crowded", Retry::exponential(Duration::from_secs(1), Duration::from_secs(60)).at_most(5))
            .on(PANIC, Retry::by_the_bus().at_most(2))
    }

    async fn handle(&self, batch: Vec<BatchItem<Text, Count>>) -> Result<(), HandlerError> {
        let mut bytes = 0;
        for BatchItem { request, attempt } in batch {
            bytes += request.text.len();
            attempt.end(match request.text.split_whitespace().count() {
                0 => Err(HandlerError::of_kind("empty", anyhow::anyhow!("there are no words"))),
                _ if bytes > MOST_BYTES => Err(HandlerError::of_kind("crowded", anyhow::anyhow!("too much at once"))),
                words => Ok(Count { words }),
            });
        }
        Ok(())
    }
}
