//! The work of orchestrator/decide.

use std::sync::Arc;

use cogo_contracts::{DecideReply, DecideRequest, Route, routes};
use cogo_service_runtime::{Claim, Handler, HandlerError};

use crate::{
    brain::{Brain, DecideError},
    decision::Provenance,
};

/// Takes decisions and sends the work on to the dispatcher.
#[derive(Debug, Clone)]
pub struct Decider {
    brain: Arc<Brain>,
}

impl Decider {
    /// A handler on this brain.
    #[must_use]
    pub fn new(brain: Arc<Brain>) -> Self {
        Self { brain }
    }
}

impl Handler for Decider {
    const ROUTE: Route = routes::DECIDE;
    type Request = DecideRequest;
    type Reply = DecideReply;

    async fn handle(&self, request: DecideRequest, claim: &Claim) -> Result<DecideReply, HandlerError> {
        let decision = self.brain.decide(claim.tenant(), &request).await?;
        let message = decision.dispatch().map_err(HandlerError::reject)?;
        let dispatched = message.id;
        let reply = decision.reply();
        let provenance =
            Provenance { message_id: claim.id(), task_id: claim.task(), holder: claim.holder().to_owned() };
        claim.summarize(format!(
            "{} goes to {} with probability {:.3}",
            decision.intent, reply.route, reply.probability
        ));
        claim.send(message);
        let recorded = Arc::new((decision, provenance));
        claim.within_completion(move |connection| {
            let recorded = Arc::clone(&recorded);
            Box::pin(async move {
                let (decision, provenance) = &*recorded;
                decision.record(connection, provenance, dispatched).await
            })
        });
        Ok(reply)
    }
}

impl From<DecideError> for HandlerError {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Refused(refusal) => Self::reject(refusal),
            DecideError::Unavailable(source) => Self::retry(source),
        }
    }
}
