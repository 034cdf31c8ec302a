//! `cogo dlq`: messages that were given up, and their second chance.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use cogo_bus_core::{Attempt, Bus, COUNT_CAP, FailureGroup, failures};
use cogo_contracts::Route;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{attempts, command::route::positive, context::Context, failure::Failure, format, output::table};

/// Dead letters that `--grouped` looks at, as bus.failure_groups has it.
const GROUPED: u32 = 10_000;
/// What a cause has in place of ids and numbers, as bus.failure_groups puts it there.
const PLACEHOLDERS: [&str; 3] = ["<n>", "<id>", "<hex>"];

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
        after_help = "Examples:\n  cogo dlq replay 01999999-0000-7000-8000-000000000000\n  cogo dlq replay --all --rate 20\n  cogo dlq replay --route rag/embed --error \"timed out\"\n  cogo dlq replay --error \"Model <n> not found\" --limit 100 --json"
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
    /// Those whose reason contains this text. A cause of `cogo dlq ls --grouped` fits too: <n>, <id> and <hex> in it stand
    /// for any text, all else for itself.
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
    let bus = context.bus().await?;
    let letters = bus.dead_letters(limit).await?;
    if is_cut(letters.len(), limit) {
        let counted = bus.dead_letter_count(u32::try_from(COUNT_CAP).unwrap_or(u32::MAX)).await?;
        let at_least = if i64::try_from(counted).is_ok_and(|counted| counted >= COUNT_CAP) { "at least " } else { "" };
        tell_cut(context, letters.len(), usize::try_from(counted).unwrap_or(usize::MAX), at_least);
    }
    if letters.is_empty() && limit > 0 && !context.output.is_json() {
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
    // all of them cost the database no more than the first ones
    let mut groups = failures(context.bus().await?.pool(), GROUPED).await?;
    let all = groups.len();
    groups.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    if is_cut(groups.len(), limit) {
        tell_cut(context, groups.len(), all, "");
    }
    if all == 0 && !context.output.is_json() {
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

/// Whether a list is as long as it may be, and so may not be all.
fn is_cut(shown: usize, limit: u32) -> bool {
    u32::try_from(shown).is_ok_and(|shown| shown >= limit)
}

/// Also where a program reads: a list does not show that it is not all.
fn tell_cut(context: &Context, shown: usize, all: usize, at_least: &str) {
    if shown < all {
        context.output.note(&format!("{shown} of {at_least}{all}, --limit for more"));
    }
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
    let payload = format::harmless(&serde_json::to_string_pretty(&message["payload"]).unwrap_or_default());
    let fields = ["id", "root_id", "tenant", "attempts", "claimed_by", "created_at", "done_at", "error"];
    // further lines of an error must not pass for fields
    let value = |key: &str| format::harmless(&text(key)).replace('\n', &format!("\n{:<12}", ""));
    let mut lines: Vec<String> = fields.iter().map(|key| format!("{key:<11} {}", value(key))).collect();
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
    let pattern = asked.error.as_deref().map(containing);
    let bus = context.bus().await?;
    let replayed = bus.replay_many(asked.route.as_ref(), pattern.as_deref(), asked.rate, asked.limit).await?;
    for one in &replayed {
        context.output.either(one, || one.id.to_string())?;
    }
    if context.output.is_json() {
        return Ok(());
    }
    if replayed.is_empty() {
        let nothing = nothing_to_replay(&bus, asked).await?;
        context.output.note(&nothing);
    } else if u32::try_from(replayed.len()).is_ok_and(|count| count >= asked.limit) {
        context.output.note("there may be more; repeat it once these have run");
    }
    Ok(())
}

/// A pattern of SQL's `like` for reasons that contain this text, also if it is a cause of a group, cut by a table or not.
fn containing(text: &str) -> String {
    let mut pattern = "%".to_owned();
    let mut rest = text.strip_suffix('…').unwrap_or(text);
    while let Some(next) = rest.chars().next() {
        if let Some(after) = PLACEHOLDERS.iter().find_map(|placeholder| rest.strip_prefix(placeholder)) {
            pattern.push('%');
            rest = after;
            continue;
        }
        if matches!(next, '\\' | '%' | '_') {
            pattern.push('\\');
        }
        pattern.push(next);
        rest = &rest[next.len_utf8()..];
    }
    pattern.push('%');
    pattern
}

/// Which of the filters left nothing.
async fn nothing_to_replay(bus: &Bus, asked: &Replay) -> Result<String, Failure> {
    if let Some(route) = &asked.route {
        let groups = failures(bus.pool(), GROUPED).await?;
        let is_of = |group: &FailureGroup| format!("{}/{}/{}", group.service, group.role, group.shard);
        if !groups.iter().any(|group| is_of(group) == route.to_string()) {
            return Ok(format!("no dead letter to replay: --route {route} fits none of the newest {GROUPED}"));
        }
    }
    Ok(match (&asked.route, &asked.error) {
        (None, None) => "no dead letter to replay".to_owned(),
        (Some(route), None) => format!("no dead letter to replay: those of --route {route} were replayed before"),
        (None, Some(error)) => {
            format!("no dead letter to replay: --error {error:?} fits none that was not replayed before")
        }
        (Some(route), Some(error)) => format!(
            "no dead letter to replay: --error {error:?} fits none of --route {route} that was not replayed before"
        ),
    })
}

pub(crate) fn no_such_message(id: Uuid) -> Failure {
    Failure::not_found(format!("There is no message {id}"))
        .hint("finished tasks are removed after their retention time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stands_for_itself_and_a_placeholder_for_anything() {
        for (text, pattern) in [
            ("timed out", "%timed out%"),
            (r"100%_of C:\temp", r"%100\%\_of C:\\temp%"),
            ("it-failed on host <n>", "%it-failed on host %%"),
            ("<id> is gone, <hex> and <name>", "%% is gone, % and <name>%"),
            ("a long caus…", "%a long caus%"),
        ] {
            assert_eq!(containing(text), pattern);
        }
    }
}
