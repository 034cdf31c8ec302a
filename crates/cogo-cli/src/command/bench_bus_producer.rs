//! A producer that sends the payloads of the load through an SQL function of a peer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{command::bench_bus_load::Plan, failure::Failure};

/// Sends batches until it is told to stop. The statement takes the payloads as `jsonb[]` and answers how many it took.
pub(crate) async fn produce(
    mut connection: PgConnection,
    statement: &'static str,
    plan: Plan,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let payloads: Vec<Json<Value>> = (0..u32::from(plan.batch)).map(|number| Json(plan.payload(number))).collect();
        let taken: i64 = sqlx::query_scalar(statement).bind(payloads).fetch_one(&mut connection).await?;
        sent.fetch_add(u64::try_from(taken).unwrap_or(0), Ordering::SeqCst);
    }
    Ok(())
}
