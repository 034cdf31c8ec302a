//! `cogo trace`: the steps of a task as a waterfall.

use chrono::{DateTime, Utc};
use clap::Args;
use cogo_contracts::{Step, Task};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    command::dead_letters::no_such_message,
    context::Context,
    failure::Failure,
    output::width,
    waterfall::{self, Waterfall},
};

/// Show the steps of a task on a common time axis: who waited, who ran, how it ended, and each attempt of what took several.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo trace 01999999-0000-7000-8000-000000000000\n  cogo trace 01999999-0000-7000-8000-000000000000 --json"
)]
pub(crate) struct Trace {
    /// Id of the task or of any of its messages.
    id: Uuid,
}

impl Trace {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let bus = context.bus().await?;
        let row = bus.message(self.id).await?.ok_or_else(|| no_such_message(self.id))?;
        let root = row["root_id"].as_str().and_then(|root| root.parse().ok()).unwrap_or(self.id);
        let task = bus.task(root).await?.ok_or_else(|| no_such_message(self.id))?;
        // unfinished steps last until now, by the clock that stamped the others
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(bus.pool()).await?;
        let output = &context.output;
        let asked: Vec<Uuid> =
            task.steps.iter().filter(|step| output.is_json() || has_several(step)).map(|step| step.id).collect();
        let waterfall = Waterfall::of(&task, now).with_histories(bus.histories(&asked).await?);
        output.either(&as_json(&task, &waterfall)?, || waterfall::render(&waterfall, width(), output.paint))
    }
}

/// One that is held by a claim of many shows that claim not in its count.
fn has_several(step: &Step) -> bool {
    step.attempts > 1 || (step.attempts == 1 && step.done_at.is_none())
}

/// The task with the times and attempts of each step beside it.
fn as_json(task: &Task, waterfall: &Waterfall) -> Result<Value, Failure> {
    let encode = |error: serde_json::Error| Failure::failed("Encode the task").because(&error);
    let mut value = serde_json::to_value(task).map_err(encode)?;
    value["total_ms"] = json!(waterfall.total_ms);
    if let Some(steps) = value["steps"].as_array_mut() {
        for step in steps {
            let id = step["id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
            if let Some(row) = waterfall.rows.iter().find(|row| Some(row.id) == id) {
                step["wait_ms"] = json!(row.wait_ms);
                step["run_ms"] = json!(row.run_ms);
                step["depth"] = json!(row.depth);
                step["history"] = json!(row.history);
            }
        }
    }
    Ok(value)
}
