//! `cogo dlq`: messages that were given up, and their second chance.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{context::Context, failure::Failure, format, output::table};

/// List, show and replay dead letters.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest dead letters with their reasons.
    #[command(visible_alias = "list", after_help = "Examples:\n  cogo dlq ls\n  cogo dlq ls --limit 500 --json")]
    Ls {
        /// At most this many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one dead letter with its payload.
    #[command(after_help = "Examples:\n  cogo dlq show 01999999-0000-7000-8000-000000000000")]
    Show {
        /// Id of the message.
        id: Uuid,
    },
    /// Send dead letters again, each as a new message that points back.
    #[command(after_help = "Examples:\n  cogo dlq replay 01999999-0000-7000-8000-000000000000")]
    Replay {
        /// Ids of the messages.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<Uuid>,
    },
}

impl DeadLetters {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.action {
            Action::Ls { limit } => list(context, limit).await,
            Action::Show { id } => show(context, id).await,
            Action::Replay { ids } => replay(context, &ids).await,
        }
    }
}

async fn list(context: &Context, limit: u32) -> Result<(), Failure> {
    let letters = context.bus().await?.dead_letters(limit).await?;
    if letters.is_empty() && !context.output.is_json() {
        context.output.note("no dead letters");
        return Ok(());
    }
    context.output.either(&letters, || {
        let rows = letters.iter().map(|letter| {
            [
                letter.id.to_string(),
                letter.route.to_string(),
                letter.tenant.to_string(),
                letter.attempts.to_string(),
                letter.failed_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                if letter.replayed_by.is_some() { "yes" } else { "-" }.to_owned(),
                format::shortened(&letter.error, 60),
            ]
        });
        table(["id", "route", "tenant", ">attempts", "failed at (UTC)", "replayed", "reason"], rows)
    })
}

async fn show(context: &Context, id: Uuid) -> Result<(), Failure> {
    let message = context.bus().await?.message(id).await?;
    let Some(message) = message else { return Err(no_such_message(id)) };
    if message["status"] != "failed" {
        let status = message["status"].as_str().unwrap_or("unknown").to_owned();
        return Err(Failure::conflict(format!("Message {id} is {status}, not a dead letter"))
            .hint(format!("`cogo trace {id}` shows its task")));
    }
    context.output.either(&message, || readable(&message))
}

fn readable(message: &Value) -> String {
    let text = |key: &str| match &message[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let payload = serde_json::to_string_pretty(&message["payload"]).unwrap_or_default();
    let fields = ["id", "root_id", "tenant", "attempts", "claimed_by", "created_at", "done_at", "error"];
    let mut lines: Vec<String> = fields.iter().map(|key| format!("{key:<11} {}", text(key))).collect();
    lines.insert(1, format!("{:<11} {}/{}/{}", "route", text("service"), text("role"), text("shard")));
    lines.push(format!("payload\n{payload}"));
    lines.join("\n")
}

/// Replays one after the other; what was done before a refusal stays done and has been told.
async fn replay(context: &Context, ids: &[Uuid]) -> Result<(), Failure> {
    let bus = context.bus().await?;
    for &id in ids {
        let replay = bus.replay(id).await?;
        context.output.either(&json!({"dead_letter": id, "replay": replay}), || replay.to_string())?;
    }
    Ok(())
}

pub(crate) fn no_such_message(id: Uuid) -> Failure {
    Failure::not_found(format!("There is no message {id}"))
        .hint("finished tasks are removed after their retention time")
}
