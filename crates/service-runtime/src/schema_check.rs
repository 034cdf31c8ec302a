//! What a worker claims, answers and sends on, held against the schemas of the routes; nothing where there are none.

use cogo_bus_core::{Claimed, Completion, Failure};
use cogo_contracts::Route;
use cogo_registry_core::{NotChecked, SchemaRegistry};
use tracing::warn;

/// Lets a claimed payload pass that fits, or says how its message fails.
pub(crate) async fn request(schemas: &SchemaRegistry, route: &Route, claimed: &Claimed) -> Result<(), Failure> {
    let outcome = schemas.check_claimed(route, &claimed.payload, &claimed.headers).await;
    settled("payload refused", outcome)
}

/// Lets a completion pass whose result and follow-ups fit, and notes in these what they were checked against.
pub(crate) async fn completion(
    schemas: &SchemaRegistry,
    route: &Route,
    completion: &mut Completion,
) -> Result<(), Failure> {
    if let Some(result) = &completion.result {
        let outcome = schemas.check_reply(route, result).await;
        settled("reply refused", outcome.map(|_version| ()))?;
    }
    for message in &mut completion.follow_ups {
        match schemas.stamp(message).await {
            // work that is done is not thrown away: whoever claims the follow-up checks it
            Err(error @ NotChecked::Unavailable(_)) => warn!(%error, "follow-up to {} not checked", message.route),
            outcome => settled(&format!("follow-up to {} refused", message.route), outcome)?,
        }
    }
    Ok(())
}

fn settled(what: &str, outcome: Result<(), NotChecked>) -> Result<(), Failure> {
    let error = match outcome {
        Ok(()) => return Ok(()),
        // a schema that nobody can use must not cost the work: the handler's own types still hold
        Err(error @ NotChecked::Unusable { .. }) => {
            warn!(%error, "not checked");
            return Ok(());
        }
        Err(error) => error,
    };
    let (reason, retriable) = (format!("{what}: {error}"), !error.is_final());
    Err(Failure { reason, retriable, retry_after: None })
}
