//! The steady load of a chaos run: messages of every size of work, each sent until it is known to be there.

use std::time::Duration;

use cogo_bus_check::{Chance, Journal, RecordedBus};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::agent::ROUTE;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// A call that takes longer is given up, and made again under the same key.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// Nothing fails here by itself, so only faults use attempts up.
const ATTEMPTS: i16 = 20;

/// Sends so many messages a second until `stop`; the journal tells of all of them.
pub(crate) async fn send(pool: PgPool, seed: u64, per_second: u32, journal: Journal, stop: CancellationToken) {
    let bus = RecordedBus::new(pool, journal).with_patience(PATIENCE);
    let mut chance = Chance::new(seed);
    let mut turn = interval(Duration::from_secs(1) / per_second.max(1));
    // what could not be sent while the database was away is not made up for all at once
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0_u64;
    while stop.run_until_cancelled(turn.tick()).await.is_some() {
        number += 1;
        let messages = [message(&mut chance, number)];
        while bus.enqueue_many(&messages).await.is_err() {
            if stop.run_until_cancelled(tokio::time::sleep(BETWEEN_TRIES)).await.is_none() {
                return;
            }
        }
    }
}

fn message(chance: &mut Chance, number: u64) -> NewMessage {
    let work_ms = match chance.below(100) {
        0..80 => 5 + chance.below(50),
        80..95 => 100 + chance.below(400),
        _ => 1_000 + chance.below(2_000),
    };
    let payload = json!({
        "work_ms": work_ms,
        "follow_ups": u8::from(chance.percent(10)),
        "effect": chance.percent(50),
        // so that the audit tells of each completion
        "__assignment": {"budget": {"maxTokens": 1_000}},
    });
    let tenant = TENANTS[usize::try_from(chance.below(TENANTS.len() as u64)).unwrap_or(0)];
    let tenant = Tenant::new(tenant).expect("the names are well formed");
    let mut message = NewMessage::new(ROUTE, Some(tenant), payload);
    message.idempotency_key = Some(format!("load-{number}"));
    message.max_attempts = Some(ATTEMPTS);
    message
}
