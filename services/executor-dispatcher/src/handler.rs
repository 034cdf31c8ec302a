//! The work of executor/dispatch.

use std::sync::Arc;

use cogo_contracts::{DispatchReply, DispatchRequest, Route, routes};
use cogo_service_runtime::{Claim, Handler, HandlerError};

use crate::{
    agents::Agents,
    dispatch::{Origin, dispatch},
    settings::Settings,
};

/// Stamps decided work and sends it on.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    agents: Agents,
    settings: Settings,
}

impl Dispatcher {
    /// A dispatcher with these limits.
    #[must_use]
    pub fn new(agents: Agents, settings: Settings) -> Self {
        Self { agents, settings }
    }
}

impl Handler for Dispatcher {
    const ROUTE: Route = routes::DISPATCH;
    type Request = DispatchRequest;
    type Reply = DispatchReply;

    async fn handle(&self, request: DispatchRequest, claim: &Claim) -> Result<DispatchReply, HandlerError> {
        let agent = self.agents.of(&request.target, claim).await?;
        let dispatch = dispatch(&request, agent.as_ref(), &self.settings).map_err(HandlerError::reject)?;
        let origin =
            Origin { task_id: claim.task(), tenant: claim.tenant().to_owned(), holder: claim.holder().to_owned() };
        claim.summarize(format!("sent to {}", dispatch.reply.target));
        claim.send(dispatch.message.clone());
        let reply = dispatch.reply.clone();
        let recorded = Arc::new((dispatch, origin));
        claim.within_completion(move |connection| {
            let recorded = Arc::clone(&recorded);
            Box::pin(async move {
                let (dispatch, origin) = &*recorded;
                dispatch.record(connection, origin).await
            })
        });
        Ok(reply)
    }
}
