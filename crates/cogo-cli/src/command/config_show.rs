//! Settings and their rollouts as people and programs see them.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use cogo_registry_core::{Registry, RolloutRecord, RolloutState, WatcherAnswer};
use serde_json::{Map, Value, json};

use crate::{context::Context, failure::Failure, format, output::table};

/// The settings that hold now, and the rollout that is under way.
pub(super) async fn present(registry: &Registry, context: &Context) -> Result<(), Failure> {
    let (version, under_way) = (registry.config_version().await?, registry.rollout_under_way().await?);
    let documents: Map<String, Value> = registry.config().await?.into_iter().collect();
    let rollout = under_way
        .as_ref()
        .map(|rollout| json!({"version": rollout.version, "state": rollout.state.as_str(), "author": rollout.author}));
    if !context.output.is_json() {
        context.output.note(&format!("configuration at version {version}"));
        if let Some(rollout) = &under_way {
            let (number, state) = (rollout.version, rollout.state.as_str());
            context
                .output
                .note(&format!("rollout {number} by {} is {state}; `cogo config show {number}`", rollout.author));
        }
        if documents.is_empty() {
            context.output.note("no settings");
            return Ok(());
        }
    }
    let value = json!({"config_version": version, "documents": documents, "under_way": rollout});
    context.output.either(&value, || serde_json::to_string_pretty(&documents).unwrap_or_default())
}

/// One rollout with what was answered to it.
pub(super) fn record(context: &Context, record: &RolloutRecord) -> Result<(), Failure> {
    context.output.either(&record_json(record), || text(record))
}

/// The newest rollouts.
pub(super) async fn history(registry: &Registry, context: &Context, limit: u32) -> Result<(), Failure> {
    let records = registry.rollouts(limit).await?;
    if records.is_empty() && !context.output.is_json() {
        context.output.note("no rollouts");
        return Ok(());
    }
    let values: Vec<Value> = records.iter().map(record_json).collect();
    context.output.either(&values, || {
        let heads = [">version", "state", "since (UTC)", "author", "for", ">acks", "note", "reason"];
        table(heads, records.iter().map(row))
    })
}

/// Agents that gave the answer of the present or last step.
pub(super) fn acknowledged(record: &RolloutRecord) -> usize {
    let answer = match record.rollout.state {
        RolloutState::Validating | RolloutState::Refused => "valid",
        _ => "applied",
    };
    record.answers.iter().filter(|given| given.answer == answer).count()
}

pub(super) fn record_json(record: &RolloutRecord) -> Value {
    let rollout = &record.rollout;
    json!({
        "version": rollout.version, "state": rollout.state.as_str(), "state_since": rollout.state_since,
        "reason": rollout.reason, "author": rollout.author, "note": record.note, "created_at": record.created_at,
        "changes": record.changes, "before": record.before, "patience_ms": record.patience_ms,
        "settle_ms": record.settle_ms, "answers": record.answers, "awaited": record.awaited,
    })
}

fn text(record: &RolloutRecord) -> String {
    let rollout = &record.rollout;
    let mut text = format!(
        "rollout {} is {} since {}, by {}",
        rollout.version,
        rollout.state.as_str(),
        time(rollout.state_since),
        rollout.author
    );
    // writing to a String cannot fail
    for (name, value) in [("note", &record.note), ("reason", &rollout.reason)] {
        if let Some(value) = value {
            let _ = write!(text, "\n{name}: {value}");
        }
    }
    for (scope, document) in &record.changes {
        let before = record.before.get(scope).map_or_else(|| "never applied".to_owned(), |it| format!("before {it}"));
        let _ = write!(text, "\n{scope}: {document} ({before})");
    }
    for holder in &record.awaited {
        let _ = write!(text, "\nwaiting for {holder}");
    }
    if !record.answers.is_empty() {
        let rows = table(["agent", "answer", "at (UTC)", "detail"], record.answers.iter().map(answer));
        let _ = write!(text, "\n\n{rows}");
    }
    text
}

fn answer(given: &WatcherAnswer) -> [String; 4] {
    [given.holder.clone(), given.answer.clone(), time(given.at), given.detail.clone().unwrap_or_default()]
}

fn row(record: &RolloutRecord) -> [String; 8] {
    let rollout = &record.rollout;
    let scopes = record.changes.keys().cloned().collect::<Vec<_>>().join(" ");
    [
        rollout.version.to_string(),
        rollout.state.as_str().to_owned(),
        time(rollout.state_since),
        rollout.author.clone(),
        format::shortened(&scopes, 40),
        acknowledged(record).to_string(),
        format::shortened(record.note.as_deref().unwrap_or("-"), 40),
        format::shortened(rollout.reason.as_deref().unwrap_or("-"), 60),
    ]
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}
