//! I6: what the completions of a task report as spent is within the budget that its assignment gives.

use std::collections::HashMap;

use cogo_contracts::Assignment;
use serde_json::Value;
use uuid::Uuid;

use super::{Harm, Invariant, Report, index::Index};

#[derive(Default)]
struct Task {
    most_tokens: Option<u64>,
    most_usd: Option<f64>,
    tokens: u64,
    usd: f64,
}

/// There is no ledger: only what completions report is known, so an attempt that spent and crashed is not seen.
pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut tasks: HashMap<Uuid, Task> = HashMap::new();
    for row in &index.rows.messages {
        let task = tasks.entry(row.root_id).or_default();
        let assignment =
            row.assignment.as_ref().and_then(|value| serde_json::from_value::<Assignment>(value.clone()).ok());
        if let Some(budget) = assignment.and_then(|assignment| assignment.budget) {
            task.most_tokens = least(task.most_tokens, budget.max_tokens, u64::min);
            task.most_usd = least(task.most_usd, budget.max_cost_usd, f64::min);
        }
        if row.status == "done"
            && let Some(usage) = row.result.as_ref().and_then(|result| result.get("usage"))
        {
            let number = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
            task.tokens += number("input_tokens") + number("output_tokens");
            task.usd += usage.get("cost_usd").and_then(Value::as_f64).unwrap_or(0.0);
        }
    }
    if tasks.values().all(|task| task.most_tokens.is_none() && task.most_usd.is_none()) {
        report.not_applicable.push((Invariant::I6, "no assignment has a budget"));
    }
    for (root, task) in tasks {
        if task.most_tokens.is_some_and(|most| task.tokens > most) {
            let what = format!("{} tokens spent of {}", task.tokens, task.most_tokens.unwrap_or(0));
            report.add(Invariant::I6, Harm::Other, Some(root), what, &[]);
        }
        if task.most_usd.is_some_and(|most| task.usd > most) {
            let what = format!("{} US dollars spent of {}", task.usd, task.most_usd.unwrap_or(0.0));
            report.add(Invariant::I6, Harm::Other, Some(root), what, &[]);
        }
    }
}

fn least<T: Copy>(one: Option<T>, other: Option<T>, min: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(min(one, other)),
        (one, other) => one.or(other),
    }
}
