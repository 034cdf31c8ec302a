//! The route sandbox/run.

use std::sync::Arc;

use cogo_contracts::{Route, SandboxEvent, SandboxReply, SandboxRequest, routes};
use cogo_service_runtime::{Claim, Handler, HandlerError};

use crate::Manager;

/// Runs the command of each message.
pub(crate) struct RunCommand(pub(crate) Arc<Manager>);

impl Handler for RunCommand {
    const ROUTE: Route = routes::SANDBOX;
    type Request = SandboxRequest;
    type Reply = SandboxReply;

    async fn handle(&self, request: SandboxRequest, claim: &Claim) -> Result<SandboxReply, HandlerError> {
        // dropped with its command when the claim's token fires
        let reply = self.0.run(claim.id(), request).await.map_err(HandlerError::reject)?;
        claim.summarize(summary(&reply));
        Ok(reply)
    }
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
