//! A dispatch: the message to the target, and the audit row that tells of it.

use cogo_bus_core::{Error as BusError, NewEvent, record_event};
use cogo_contracts::{Assignment, DispatchReply, DispatchRequest, NewMessage};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    agents::AgentSort,
    settings::Settings,
    stamp::{Refusal, stamp},
};

/// The claim that a dispatch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its task.
    pub task_id: Uuid,
    /// Its tenant.
    pub tenant: String,
    /// Who holds it.
    pub holder: String,
}

/// Work that is ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// The message to the target; its time to live is that of the stamp, so that the bus enforces it.
    pub message: NewMessage,
    /// Result of executor/dispatch.
    pub reply: DispatchReply,
}

/// Stamps the work and addresses it.
///
/// # Errors
/// [`Refusal`] when the work must not be sent.
pub fn dispatch(
    request: &DispatchRequest,
    agent: Option<&AgentSort>,
    settings: &Settings,
) -> Result<Dispatch, Refusal> {
    let (payload, assignment) = stamp(request, agent, settings)?;
    let mut message = NewMessage::new(request.target.clone(), None, payload);
    message.id = Some(Uuid::now_v7());
    message.ttl_ms = assignment.ttl_ms;
    Ok(Dispatch { message, reply: DispatchReply { target: request.target.clone(), assignment } })
}

impl Dispatch {
    /// Writes the audit row `execute_enqueued` inside the transaction of the completion.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn record(&self, connection: &mut PgConnection, origin: &Origin) -> Result<(), BusError> {
        let Assignment { agent_id, version, model, budget, ttl_ms, decision_id } = &self.reply.assignment;
        let event = NewEvent {
            kind: "execute_enqueued",
            tenant: &origin.tenant,
            message_id: self.message.id,
            root_id: Some(origin.task_id),
            route: Some(self.reply.target.to_string()),
            actor: &origin.holder,
            detail: json!({
                "agent_id": agent_id, "version": version, "model": model, "budget": budget, "ttl_ms": ttl_ms,
                "decision_id": decision_id,
            }),
        };
        record_event(connection, &event).await
    }
}
