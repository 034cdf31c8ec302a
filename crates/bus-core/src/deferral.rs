//! Handing messages back for later, because they could not be tried.

use std::time::Duration;

use crate::{Bus, Error, Fence};

impl Bus {
    /// Hands claims back unworked, to be claimed again after `wait`: a second for each time before at least, a year at
    /// most. It counts against no message's attempts. What was handed back 1000 times becomes a dead letter, as does what
    /// waits when its time to live passes. Answers how many wait.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn defer(&self, fences: &[Fence], holder: &str, wait: Duration, reason: &str) -> Result<u64, Error> {
        let (ids, attempts): (Vec<_>, Vec<_>) = fences.iter().map(|fence| (fence.id, fence.attempt)).unzip();
        let deferred: i32 = sqlx::query_scalar("select bus.defer($1, $2, $3, $4, $5)")
            .bind(ids)
            .bind(attempts)
            .bind(holder)
            .bind(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
            .bind(reason.replace('\0', "\u{fffd}"))
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(deferred.unsigned_abs()))
    }
}
