//! Recording what a holder has finished, one by one or in batches.

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Bus, Completion, Error, Fence};

impl Bus {
    /// Records the one completion; false if the claim is no longer the holder's, and then nothing was written.
    ///
    /// # Errors
    /// [`Error::Refused`] when result or follow-ups are against the contract; [`Error::Database`] when the outcome is unknown.
    pub async fn complete(&self, fence: &Fence, holder: &str, completion: &Completion) -> Result<bool, Error> {
        let mut line = self.lines.lend().await?;
        let recorded = record(&mut line, fence, holder, completion).await;
        Ok(line.back(recorded)?)
    }

    /// The same inside the caller's transaction, for a handler whose own writes must stand or fall with the completion.
    ///
    /// # Errors
    /// As [`Bus::complete`].
    pub async fn complete_in(
        connection: &mut PgConnection,
        fence: &Fence,
        holder: &str,
        completion: &Completion,
    ) -> Result<bool, Error> {
        Ok(record(connection, fence, holder, completion).await?)
    }

    /// Records many completions that send nothing, in one statement. Answers the ids that were still the holder's. All or
    /// none are written: if one of them is against the contract, none is.
    ///
    /// # Errors
    /// As [`Bus::complete`], and [`Error::Refused`] when one is not [plain](Completion::is_plain), before anything is sent.
    pub async fn complete_many(&self, ended: &[(Fence, Completion)], holder: &str) -> Result<Vec<Uuid>, Error> {
        if let Some((fence, _)) = ended.iter().find(|(_, completion)| !completion.is_plain()) {
            let reason = format!("the completion of {} has follow-ups: record it by Bus::complete", fence.id);
            return Err(Error::Refused { source: sqlx::Error::InvalidArgument(reason.clone()), reason });
        }
        // a claim is named whole in the order of its ids, and then costs least
        let mut ended: Vec<&(Fence, Completion)> = ended.iter().collect();
        ended.sort_unstable_by_key(|(fence, _)| fence.id);
        let (ids, attempts): (Vec<Uuid>, Vec<i16>) = ended.iter().map(|(fence, _)| (fence.id, fence.attempt)).unzip();
        let results: Vec<Option<&Value>> = ended.iter().map(|(_, completion)| completion.result.as_ref()).collect();
        let snippets: Vec<Option<&str>> = ended.iter().map(|(_, completion)| completion.snippet.as_deref()).collect();
        let urls: Option<Vec<Option<&str>>> = ended
            .iter()
            .any(|(_, completion)| completion.result_url.is_some())
            .then(|| ended.iter().map(|(_, completion)| completion.result_url.as_deref()).collect());
        let mut line = self.lines.lend().await?;
        let recorded = sqlx::query_scalar("select bus.complete_batch($1, $2, $3, $4, $5, $6)")
            .bind(ids)
            .bind(attempts)
            .bind(holder)
            .bind(results)
            .bind(snippets)
            .bind(urls)
            .fetch_one(&mut *line)
            .await;
        let recorded: Option<Vec<Uuid>> = line.back(recorded)?;
        Ok(recorded.unwrap_or_default())
    }
}

async fn record(
    connection: &mut PgConnection,
    fence: &Fence,
    holder: &str,
    completion: &Completion,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select bus.complete($1, $2, $3, $4, $5, $6, $7)")
        .bind(fence.id)
        .bind(holder)
        .bind(fence.attempt)
        .bind(&completion.result)
        .bind(&completion.snippet)
        .bind(&completion.result_url)
        .bind(sqlx::types::Json(&completion.follow_ups))
        .fetch_one(connection)
        .await
}
