//! `cogo cancel`: takes back what is not finished of a task.

use clap::Args;
use cogo_bus_core::Bus;
use serde_json::json;
use uuid::Uuid;

use crate::{command::dead_letters::no_such_message, context::Context, failure::Failure};

/// Take back everything of a task that is not finished, also what is being worked on.
#[derive(Debug, Args)]
#[command(
    after_help = "What is done stays done. Of a message that is a step of a task only that message is taken back.\n\nExamples:\n  cogo cancel 01999999-0000-7000-8000-000000000000\n  cogo cancel 01999999-0000-7000-8000-000000000000 --json"
)]
pub(crate) struct Cancel {
    /// Id of the task, or of one of its messages.
    id: Uuid,
}

impl Cancel {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let id = self.id;
        let bus = context.bus().await?;
        let message = bus.message(id).await?.ok_or_else(|| no_such_message(id))?;
        let root = message["root_id"].as_str().and_then(|root| root.parse().ok()).unwrap_or(id);
        let cancelled = bus.cancel(id).await?;
        if cancelled == 0 {
            return Err(ended_before(&bus, id, root).await?);
        }
        if root != id && !context.output.is_json() {
            context.output.note(&format!("a step of a task; `cogo cancel {root}` takes back all of it"));
        }
        context.output.either(&json!({"id": id, "root_id": root, "cancelled": cancelled}), || match cancelled {
            1 => "cancelled 1 message".to_owned(),
            many => format!("cancelled {many} messages"),
        })
    }
}

/// Says how it ended: of a root the task counts, of a step its message.
async fn ended_before(bus: &Bus, id: Uuid, root: Uuid) -> Result<Failure, Failure> {
    let task = bus.task(root).await?.ok_or_else(|| no_such_message(id))?;
    let (what, status) = if root == id {
        ("Task", json!(task.status))
    } else {
        ("Message", task.steps.iter().find(|step| step.id == id).map(|step| json!(step.status)).unwrap_or_default())
    };
    let status = status.as_str().unwrap_or("unknown");
    Ok(Failure::conflict(format!("{what} {id} has already ended as {status}"))
        .hint(format!("`cogo trace {root}` shows its steps")))
}
