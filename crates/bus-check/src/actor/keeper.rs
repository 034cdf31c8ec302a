//! Heals and cleans: reclaims leases, expires, replays a few dead letters, removes what is old.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Actor, Point};

/// What a keeper is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeeperSettings {
    /// From one round to the next.
    pub every_ms: u64,
    /// Most dead letters that it replays in its life.
    pub replays: u32,
    /// Removes tasks that ended longer ago than this; absent: none.
    pub keep_ms: Option<u64>,
}

/// Small, so that many rounds run beside each other.
const MOST_ROWS: u32 = 200;

pub(super) async fn run(actor: &mut Actor, settings: &KeeperSettings) {
    let mut replays_left = settings.replays;
    while !actor.is_stopped() {
        // what fails now is done in the next round
        let call = actor.bus.reclaim(MOST_ROWS);
        let _ = actor.fault.during(Point::Reclaiming, &mut actor.chance, call).await;
        let _ = actor.bus.expire(MOST_ROWS).await;
        if replays_left > 0
            && actor.chance.percent(20)
            && let Ok(Ok(letters)) = tokio::time::timeout(Duration::from_secs(1), actor.bus.bus().dead_letters(3)).await
            && let Some(letter) = letters.first()
        {
            replays_left -= 1;
            let _ = actor.bus.replay(letter.id).await;
        }
        if let Some(keep) = settings.keep_ms {
            let _ = actor.bus.retain(Duration::from_millis(keep), MOST_ROWS).await;
        }
        actor.pause(Duration::from_millis(settings.every_ms)).await;
    }
}
