//! `cogo schedule`: messages that the clock sends.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cogo_bus_core::{MissedRuns, NewSchedule, Schedule, ScheduleError};
use cogo_contracts::{Route, Tenant};
use serde_json::{Value, json};

use crate::{
    context::Context,
    failure::{Failure, Kind, about_file},
    format,
    output::table,
};

/// Send messages by the clock: add, list, pause, resume and remove schedules.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Schedules {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Define a schedule, or change the one of this name.
    #[command(
        after_help = "The expression has five fields (minute, hour, day, month, weekday) or six, with the second first.\n\nExamples:\n  cogo schedule add nightly-index \"30 2 * * *\" rag index --zone Europe/Berlin --data @request.json\n  cogo schedule add heartbeat \"*/10 * * * * *\" test ping --missed skip\n  cogo schedule add report \"0 8 * * MON-FRI\" research answer --data '{\"question\":\"What changed?\"}' --missed run-all --catch-up 5"
    )]
    Add(Box<Add>),
    /// List schedules with their next and last occurrence.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  cogo schedule list\n  cogo schedule list --tenant acme --json"
    )]
    List {
        /// Only those of this tenant.
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Send nothing until it is resumed; what falls into the pause is not made up for.
    #[command(
        after_help = "Examples:\n  cogo schedule pause nightly-index\n  cogo schedule pause report --tenant acme"
    )]
    Pause(Named),
    /// Go on with the next occurrence.
    #[command(after_help = "Examples:\n  cogo schedule resume nightly-index")]
    Resume(Named),
    /// Forget a schedule; what it sent stays.
    #[command(visible_alias = "rm", after_help = "Examples:\n  cogo schedule remove nightly-index")]
    Remove(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// Name of the schedule: letters, digits, `_`, `.` and `-`, a letter or digit first, at most 100.
    #[arg(value_parser = schedule_name)]
    name: String,
    /// Whose schedule it is.
    #[arg(long, default_value = "default")]
    tenant: Tenant,
}

#[derive(Debug, Args)]
struct Add {
    #[command(flatten)]
    named: Named,
    /// When: a cron expression, quoted.
    #[arg(allow_hyphen_values = true)]
    cron: String,
    /// First part of the routing key: the domain that answers.
    service: String,
    /// Second part: the role within the domain.
    role: String,
    /// Third part of the routing key.
    #[arg(long, default_value_t = 0)]
    shard: u16,
    /// Time zone that the expression is meant in, such as Europe/Berlin.
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    zone: String,
    /// The payload: a JSON object or @FILE.
    #[arg(long, value_name = "JSON|@FILE", default_value = "{}")]
    data: String,
    /// 0 to 1000, lower first.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i16).range(0..=1000))]
    priority: i16,
    /// Attempts after which a failure is final.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(i16).range(1..=1000))]
    max_attempts: i16,
    /// Never start a message later than this many milliseconds after it was sent.
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// What becomes of occurrences that nobody fired in time.
    #[arg(long, value_enum, default_value_t = Missed::RunOnce)]
    missed: Missed,
    /// Under run-all, make up for at most this many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i16).range(1..=1000))]
    catch_up: i16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Missed {
    /// They are not sent.
    Skip,
    /// One message for all of them.
    #[value(alias = "run_once")]
    RunOnce,
    /// Each is sent, oldest first.
    #[value(alias = "run_all")]
    RunAll,
}

/// A name as the table of schedules takes it.
fn schedule_name(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let valid =
        text.len() <= 100 && text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.bytes().all(legal);
    if valid {
        return Ok(text.to_owned());
    }
    Err("a name consists of letters, digits, `_`, `.` and `-`, begins with a letter or digit, and has at most 100"
        .to_owned())
}

impl From<Missed> for MissedRuns {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Skip => Self::Skip,
            Missed::RunOnce => Self::RunOnce,
            Missed::RunAll => Self::RunAll,
        }
    }
}

impl Schedules {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.action {
            Action::Add(add) => add.run(context).await,
            Action::List { tenant } => list(context, tenant.as_ref()).await,
            Action::Pause(Named { name, tenant }) => {
                let changed = context.bus().await?.pause_schedule(&tenant, &name).await?;
                told(context, changed, &name, &tenant, "paused").await
            }
            Action::Resume(Named { name, tenant }) => {
                let changed = context.bus().await?.resume_schedule(&tenant, &name).await?;
                told(context, changed, &name, &tenant, "resumed").await
            }
            Action::Remove(Named { name, tenant }) => {
                let changed = context.bus().await?.remove_schedule(&tenant, &name).await?;
                told(context, changed, &name, &tenant, "removed").await
            }
        }
    }
}

impl Add {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let schedule = self.schedule()?;
        let created = context.bus().await?.upsert_schedule(&schedule).await.map_err(|error| match error {
            ScheduleError::Invalid(invalid) => {
                Failure::new(Kind::Usage, "The schedule would never fire").because(&invalid)
            }
            ScheduleError::Bus(error) => error.into(),
        })?;
        let Named { name, tenant } = &self.named;
        let value = json!({"name": name, "tenant": tenant, "created": created});
        context.output.either(&value, || format!("{} {name}", if created { "added" } else { "changed" }))
    }

    fn schedule(&self) -> Result<NewSchedule, Failure> {
        let route = Route::new(&self.service, &self.role, self.shard)
            .map_err(|invalid| Failure::new(Kind::Usage, invalid.to_string()))?;
        let Named { name, tenant } = &self.named;
        Ok(NewSchedule {
            time_zone: self.zone.clone(),
            priority: self.priority,
            max_attempts: self.max_attempts,
            ttl: self.ttl_ms.map(Duration::from_millis),
            missed: self.missed.into(),
            catch_up_cap: self.catch_up,
            ..NewSchedule::new(name, tenant.clone(), &self.cron, route, self.payload()?)
        })
    }

    fn payload(&self) -> Result<Value, Failure> {
        let text = match self.data.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path).map_err(about_file("read", path.as_ref()))?,
            None => self.data.clone(),
        };
        let payload: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(Kind::Usage, "The payload is not JSON").cause(error.to_string()))?;
        if !payload.is_object() {
            return Err(Failure::new(Kind::Usage, "The payload must be a JSON object"));
        }
        Ok(payload)
    }
}

async fn list(context: &Context, tenant: Option<&Tenant>) -> Result<(), Failure> {
    let schedules = context.bus().await?.schedules(tenant).await?;
    if schedules.is_empty() && !context.output.is_json() {
        context.output.note("no schedules");
        return Ok(());
    }
    context.output.either(&schedules, || {
        let heads = ["name", "tenant", "cron", "zone", "route", "missed", "next (UTC)", "last (UTC)"];
        table(heads, schedules.iter().map(row))
    })
}

fn row(schedule: &Schedule) -> [String; 8] {
    let time = |at: Option<chrono::DateTime<chrono::Utc>>| {
        at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
    };
    let next = match (&schedule.last_error, schedule.paused) {
        (Some(error), _) => format!("broken: {}", format::shortened(error, 60)),
        (None, true) => "paused".to_owned(),
        (None, false) => time(schedule.next_at),
    };
    let missed = match schedule.missed {
        MissedRuns::Skip => "skip".to_owned(),
        MissedRuns::RunOnce => "run-once".to_owned(),
        MissedRuns::RunAll => format!("run-all {}", schedule.catch_up_cap),
    };
    [
        schedule.name.clone(),
        schedule.tenant.to_string(),
        schedule.cron.clone(),
        schedule.time_zone.clone(),
        schedule.route.to_string(),
        missed,
        next,
        time(schedule.last_at),
    ]
}

/// Says what was done; why nothing was done shows in the list.
async fn told(context: &Context, changed: bool, name: &str, tenant: &Tenant, done: &str) -> Result<(), Failure> {
    if changed {
        return context
            .output
            .either(&json!({"name": name, "tenant": tenant, "state": done}), || format!("{done} {name}"));
    }
    let schedules = context.bus().await?.schedules(Some(tenant)).await?;
    if schedules.iter().any(|schedule| schedule.name == name) {
        return Err(Failure::conflict(format!("Schedule {name} of tenant {tenant} is {} already", state_before(done))));
    }
    Err(Failure::not_found(format!("There is no schedule {name} of tenant {tenant}"))
        .hint("`cogo schedule list` shows them all"))
}

fn state_before(done: &str) -> &str {
    match done {
        "resumed" => "running",
        _ => done,
    }
}
