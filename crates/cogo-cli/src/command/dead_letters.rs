//! `cogo dlq`: messages that were given up, and their second chance.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use cogo_bus_core::{Attempt, FailureGroup, failures};
use cogo_contracts::Route;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{attempts, command::route::positive, context::Context, failure::Failure, format, output::table};

/// List, show and replay dead letters.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest dead letters with their reasons, or how many there are of each cause.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  cogo dlq ls\n  cogo dlq ls --limit 500 --json\n  cogo dlq ls --grouped"
    )]
    Ls {
        /// At most this many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// The newest 10,000 by route and cause: how many, since when, and one of them.
        #[arg(long)]
        grouped: bool,
    },
    /// Show one dead letter with its payload and each of its attempts.
    #[command(after_help = "Examples:\n  cogo dlq show 01999999-0000-7000-8000-000000000000")]
    Show {
        /// Id of the message.
        id: Uuid,
    },
    /// Send dead letters again, each as a new message that points back.
    #[command(
        after_help = "Examples:\n  cogo dlq replay 01999999-0000-7000-8000-000000000000\n  cogo dlq replay --all --rate 20\n  cogo dlq replay --route rag/embed --error \"timed out\"\n  cogo dlq replay --error \"Model % not found%\" --limit 100 --json"
    )]
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Replay {
    /// Ids of the messages.
    #[arg(required_unless_present_any = ["all", "route", "error"], value_name = "ID")]
    ids: Vec<Uuid>,
    /// All that were not replayed yet.
    #[arg(long, conflicts_with_all = ["ids", "route", "error"])]
    all: bool,
    /// Those of this route: service/role or service/role/shard.
    #[arg(long, conflicts_with = "ids")]
    route: Option<Route>,
    /// Those whose reason contains this text; with % in it, those that it fits as a whole, % being any text.
    #[arg(long, conflicts_with = "ids", value_name = "TEXT")]
    error: Option<String>,
    /// Start at most this many a second.
    #[arg(long, conflicts_with = "ids", value_name = "PER_SECOND", default_value_t = 50.0, value_parser = positive)]
    rate: f64,
    /// At most this many, oldest first.
    #[arg(long, conflicts_with = "ids", value_name = "N", default_value_t = 10_000)]
    limit: u32,
}

impl DeadLetters {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.action {
            Action::Ls { limit, grouped: true } => list_groups(context, limit).await,
            Action::Ls { limit, grouped: false } => list(context, limit).await,
            Action::Show { id } => show(context, id).await,
            Action::Replay(replay) if replay.ids.is_empty() => replay_many(context, &replay).await,
            Action::Replay(replay) => replay_these(context, &replay.ids).await,
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

async fn list_groups(context: &Context, limit: u32) -> Result<(), Failure> {
    let groups = failures(context.bus().await?.pool(), limit).await?;
    if groups.is_empty() && !context.output.is_json() {
        context.output.note("no dead letters");
        return Ok(());
    }
    context.output.either(&groups, || {
        let rows = groups.iter().map(|group: &FailureGroup| {
            [
                group.count.to_string(),
                format!("{}/{}/{}", group.service, group.role, group.shard),
                group.first_seen.format("%Y-%m-%d %H:%M:%S").to_string(),
                group.last_seen.format("%Y-%m-%d %H:%M:%S").to_string(),
                group.sample_id.to_string(),
                format::shortened(&group.error, 60),
            ]
        });
        table([">count", "route", "first (UTC)", "last (UTC)", "newest", "cause"], rows)
    })
}

async fn show(context: &Context, id: Uuid) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let Some(mut message) = bus.message(id).await? else { return Err(no_such_message(id)) };
    if message["status"] != "failed" {
        let status = message["status"].as_str().unwrap_or("unknown").to_owned();
        return Err(Failure::conflict(format!("Message {id} is {status}, not a dead letter"))
            .hint(format!("`cogo trace {id}` shows its task")));
    }
    let history = bus.history(id).await?;
    message["history"] = json!(history);
    context.output.either(&message, || readable(&message, &history))
}

fn readable(message: &Value, history: &[Attempt]) -> String {
    let text = |key: &str| match &message[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let payload = serde_json::to_string_pretty(&message["payload"]).unwrap_or_default();
    let fields = ["id", "root_id", "tenant", "attempts", "claimed_by", "created_at", "done_at", "error"];
    let mut lines: Vec<String> = fields.iter().map(|key| format!("{key:<11} {}", text(key))).collect();
    lines.insert(1, format!("{:<11} {}/{}/{}", "route", text("service"), text("role"), text("shard")));
    if !history.is_empty() {
        lines.push("history".to_owned());
        // none of them runs any more
        lines.extend(attempts::lines(history, DateTime::<Utc>::MIN_UTC).iter().map(|line| format!("  {line}")));
    }
    lines.push(format!("payload\n{payload}"));
    lines.join("\n")
}

/// Replays one after the other; what was done before a refusal stays done and has been told.
async fn replay_these(context: &Context, ids: &[Uuid]) -> Result<(), Failure> {
    let bus = context.bus().await?;
    for &id in ids {
        let replay = bus.replay(id).await?;
        context.output.either(&json!({"dead_letter": id, "replay": replay}), || replay.to_string())?;
    }
    Ok(())
}

/// Replays all that fit in one transaction, spread over time.
async fn replay_many(context: &Context, asked: &Replay) -> Result<(), Failure> {
    let pattern = asked.error.as_ref().map(|text| if text.contains('%') { text.clone() } else { format!("%{text}%") });
    let bus = context.bus().await?;
    let replayed = bus.replay_many(asked.route.as_ref(), pattern.as_deref(), asked.rate, asked.limit).await?;
    for one in &replayed {
        context.output.either(one, || one.id.to_string())?;
    }
    if context.output.is_json() {
        return Ok(());
    }
    if replayed.is_empty() {
        context.output.note("no dead letter to replay");
    } else if u32::try_from(replayed.len()).is_ok_and(|count| count >= asked.limit) {
        context.output.note("there may be more; repeat it once these have run");
    }
    Ok(())
}

pub(crate) fn no_such_message(id: Uuid) -> Failure {
    Failure::not_found(format!("There is no message {id}"))
        .hint("finished tasks are removed after their retention time")
}
