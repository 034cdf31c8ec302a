//! Fires schedules when they are due, not when a turn comes round.

use std::time::Duration;

use cogo_bus_core::{Bus, Error, Fired};
use tokio::time::Instant;

/// A clock that is set back between the look and the firing must not make this spin.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);

/// Fires what is due, then sleeps until the next one is, until `turn` is over. What becomes due later than that, or is
/// defined meanwhile, is for the next turn. Answers what was done altogether; safe to break off and to run twice.
///
/// # Errors
/// When the database does not answer; what was sent until then stands.
pub async fn fire_during(bus: &Bus, batch: u32, turn: Duration) -> Result<Fired, Error> {
    let end = Instant::now() + turn;
    let mut total = Fired::default();
    loop {
        let fired = bus.fire_due_schedules(batch).await?;
        total.due += fired.due;
        total.sent += fired.sent;
        total.broken += fired.broken;
        if fired.due >= u64::from(batch) && Instant::now() < end {
            continue;
        }
        let Some(wait) = bus.next_schedule_due().await? else { return Ok(total) };
        let next = Instant::now() + wait.max(SHORTEST_WAIT);
        if next >= end {
            return Ok(total);
        }
        tokio::time::sleep_until(next).await;
    }
}
