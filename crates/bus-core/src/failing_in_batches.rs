//! Ending many attempts with errors in one statement.

use uuid::Uuid;

use crate::{Bus, Error, Failure, Fence, Settled};

impl Bus {
    /// Ends many attempts with an error each, in one statement. Answers those that were still the holder's with what
    /// followed, in the order of their ids; the others are lost to it. All or none are written.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn fail_many(&self, ended: &[(Fence, Failure)], holder: &str) -> Result<Vec<(Uuid, Settled)>, Error> {
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = ended.iter().map(|(fence, _)| fence.id).collect();
        let attempts: Vec<i16> = ended.iter().map(|(fence, _)| fence.attempt).collect();
        // what the database cannot store is replaced, as in a failure of one
        let reasons: Vec<String> = ended.iter().map(|(_, failure)| failure.reason.replace('\0', "\u{fffd}")).collect();
        let retriable: Vec<bool> = ended.iter().map(|(_, failure)| failure.retriable).collect();
        let retry_ms: Vec<Option<i64>> = ended
            .iter()
            .map(|(_, failure)| failure.retry_after.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
            .collect();
        let settled: Vec<(Uuid, String)> =
            sqlx::query_as("select id, status from bus.fail_many($1, $2, $3, $4, $5, $6)")
                .bind(ids)
                .bind(attempts)
                .bind(holder)
                .bind(reasons)
                .bind(retriable)
                .bind(retry_ms)
                .fetch_all(&self.pool)
                .await?;
        Ok(settled.into_iter().map(|(id, status)| (id, Settled::from_status(&status))).collect())
    }
}
