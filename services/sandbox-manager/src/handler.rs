//! The route sandbox/run.

use std::{sync::Arc, time::Duration};

use cogo_contracts::{Route, SandboxEvent, SandboxReply, SandboxRequest, routes};
use cogo_service_runtime::{Claim, Handler, HandlerError};

use crate::{Manager, Refusal};

/// Runs the command of each message.
pub(crate) struct RunCommand(pub(crate) Arc<Manager>);

impl Handler for RunCommand {
    const ROUTE: Route = routes::SANDBOX;
    type Request = SandboxRequest;
    type Reply = SandboxReply;

    async fn handle(&self, request: SandboxRequest, claim: &Claim) -> Result<SandboxReply, HandlerError> {
        // dropped with its command when the claim's token fires
        let left = claim.budget().map(|budget| budget.remaining());
        let request = SandboxRequest { limit_ms: limit_ms(request.limit_ms, left), ..request };
        let reply = self.0.run(claim.id(), request).await.map_err(|refusal| match refusal {
            Refusal::Resting { retry_after } => HandlerError::deferred(retry_after, refusal),
            other => HandlerError::reject(other),
        })?;
        claim.summarize(summary(&reply));
        Ok(reply)
    }
}

/// The limit of a command: no more than the message has left, so that the worker ends it and its output is told.
fn limit_ms(asked: u64, left: Option<Duration>) -> u64 {
    let left = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    // a message without any time left ends by itself
    left.map_or(asked, |left| asked.min(left.max(1)))
}

fn summary(reply: &SandboxReply) -> String {
    let end = match &reply.end {
        SandboxEvent::Exited { code: Some(code) } => format!("exited with {code}"),
        SandboxEvent::Exited { code: None } => "ended by a signal".to_owned(),
        SandboxEvent::TimedOut => "killed at its limit".to_owned(),
        SandboxEvent::Failed { reason } => format!("failed: {reason}"),
        SandboxEvent::Started | SandboxEvent::Stdout { .. } | SandboxEvent::Stderr { .. } => "did not end".to_owned(),
    };
    format!("{end} after {} ms", reply.run_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_gets_no_more_time_than_its_message_has() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (asked, left, expected) in
            [(5_000, None, 5_000), (5_000, seconds(60), 5_000), (60_000, seconds(5), 5_000), (5_000, seconds(0), 1)]
        {
            assert_eq!(limit_ms(asked, left), expected, "{asked} {left:?}");
        }
        // what no limit may be stays that, and is refused
        assert_eq!(limit_ms(0, seconds(5)), 0);
    }
}
