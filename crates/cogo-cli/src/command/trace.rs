//! `cogo trace`: the steps of a task as a waterfall.

use chrono::{DateTime, Utc};
use clap::Args;
use cogo_contracts::Task;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    command::dead_letters::no_such_message,
    context::Context,
    failure::Failure,
    output::width,
    waterfall::{self, Waterfall},
};

/// Show the steps of a task on a common time axis: who waited, who ran, how often, how it ended.
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
        let waterfall = Waterfall::of(&task, now);
        output.either(&as_json(&task, &waterfall)?, || waterfall::render(&waterfall, width(), output.paint))
    }
}

/// The task with the times of each step beside it.
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
            }
        }
    }
    Ok(value)
}
