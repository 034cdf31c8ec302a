//! `cogo config`: settings that change while processes run, by rollout.

use clap::{Args, Subcommand};
use cogo_registry_core::{NotTakenBack, Proposal, Registry, RolloutRecord, RolloutState};
use serde_json::{Map, Value, json};

use crate::{
    command::{
        config_file,
        config_show::{self, record_json},
        config_wait::{self, Pace},
    },
    context::Context,
    failure::{Failure, Kind},
};

/// SQLSTATE of "not in this state": another rollout is under way, or the configuration has changed since.
const NOT_NOW: &str = "55000";

/// Change settings of running processes: propose, follow, look at and take back rollouts.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Give processes new settings: all check them, then all apply them, and they are taken back if one fails or is no
    /// longer ready.
    #[command(
        after_help = "FILE holds one document for each name of processes, or * for all: {\"rag-embed\": {\"concurrency\": 8}}, or the same as TOML. null takes a document away.\nExit code 1 if it was refused or taken back.\n\nExamples:\n  cogo config propose settings.json --note \"more embedding at night\"\n  cogo config propose settings.toml --settle 60\n  cogo config propose --remove rag-embed --no-wait --json"
    )]
    Propose(Propose),
    /// Show the settings that hold, or one rollout: its state, who acknowledged it and why it was taken back.
    #[command(after_help = "Examples:\n  cogo config show\n  cogo config show 12 --json")]
    Show {
        /// The rollout.
        #[arg(value_name = "VERSION")]
        version: Option<i64>,
    },
    /// List the rollouts, newest first.
    #[command(after_help = "Examples:\n  cogo config history\n  cogo config history --limit 100 --json")]
    History {
        /// No more than this many.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Stop the rollout that is under way, or roll out again what held before one that is live.
    #[command(
        after_help = "Examples:\n  cogo config rollback --reason \"wrong model\"\n  cogo config rollback 12 --reason \"slower\" --settle 0"
    )]
    Rollback(Rollback),
}

#[derive(Debug, Args)]
struct Propose {
    /// JSON, TOML (a name that ends with .toml), or - for JSON from standard input.
    #[arg(value_name = "FILE|-", required_unless_present = "remove")]
    file: Option<String>,
    /// Take the document of this name away, too.
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Only if the configuration is still at this version, as `cogo config show` tells it.
    #[arg(long, value_name = "VERSION")]
    if_still_at: Option<i64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Rollback {
    /// The rollout; the one that is under way if you do not say.
    #[arg(value_name = "VERSION")]
    version: Option<i64>,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "no reason given")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Who asks for it.
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "cogo")]
    author: String,
    #[command(flatten)]
    pace: Pace,
}

impl Config {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let registry = Registry::new(context.bus().await?.pool().clone());
        match self.action {
            Action::Propose(propose) => propose.run(&registry, context).await,
            Action::Show { version: None } => config_show::present(&registry, context).await,
            Action::Show { version: Some(version) } => config_show::record(context, &found(&registry, version).await?),
            Action::History { limit } => config_show::history(&registry, context, limit).await,
            Action::Rollback(rollback) => rollback.run(&registry, context).await,
        }
    }
}

impl Propose {
    async fn run(self, registry: &Registry, context: &Context) -> Result<(), Failure> {
        let documents = match &self.file {
            Some(file) => config_file::read(file)?,
            None => Map::new(),
        };
        let mut proposal = Proposal::new(&self.common.author);
        for scope in &self.remove {
            proposal = proposal.remove(config_file::scope(scope)?);
        }
        for (scope, document) in documents {
            proposal = match document {
                Value::Object(document) => proposal.set(&scope, document),
                _ => proposal.remove(&scope),
            };
        }
        if let Some(note) = &self.note {
            proposal = proposal.note(note);
        }
        if let Some(version) = self.if_still_at {
            proposal = proposal.if_still_at(version);
        }
        begin(registry, context, proposal, self.common.pace).await
    }
}

async fn begin(registry: &Registry, context: &Context, proposal: Proposal, pace: Pace) -> Result<(), Failure> {
    let version = registry.propose_config(&pace.onto(proposal)).await.map_err(not_begun)?;
    if pace.no_wait {
        let value = json!({"version": version, "state": RolloutState::Validating.as_str()});
        return context.output.either(&value, || format!("rollout {version} has begun"));
    }
    config_wait::until_over(registry, context, version).await
}

impl Rollback {
    async fn run(self, registry: &Registry, context: &Context) -> Result<(), Failure> {
        let under_way = registry.rollout_under_way().await?;
        let Some(version) = self.version.or(under_way.as_ref().map(|rollout| rollout.version)) else {
            return Err(Failure::not_found("No rollout is under way")
                .hint("name one that is live; `cogo config history` shows them"));
        };
        if under_way.is_some_and(|rollout| rollout.version == version)
            && registry.roll_back_config(version, &self.common.author, &self.reason).await?
        {
            let record = found(registry, version).await?;
            let state = record.rollout.state.as_str();
            return context.output.either(&record_json(&record), || format!("rollout {version} is {state}"));
        }
        let proposal = registry.taking_back(version, &self.common.author).await.map_err(not_taken_back)?;
        let note = format!("takes back rollout {version}: {}", self.reason);
        begin(registry, context, proposal.note(&note), self.common.pace).await
    }
}

async fn found(registry: &Registry, version: i64) -> Result<RolloutRecord, Failure> {
    let record = registry.rollout_record(version).await?;
    record.ok_or_else(|| not_taken_back(NotTakenBack::NoSuchRollout { version }))
}

fn not_begun(error: cogo_registry_core::Error) -> Failure {
    if let cogo_registry_core::Error::Database(source) = &error
        && let Some(refusal) = source.as_database_error()
    {
        match refusal.code().as_deref() {
            Some(NOT_NOW) => {
                return Failure::conflict(refusal.message().to_owned())
                    .hint("`cogo config show` tells where it stands, `cogo config rollback` stops a rollout");
            }
            // not of the form that the table takes: too large, or a name that is none
            Some("22023" | "23514") => return Failure::new(Kind::Usage, refusal.message().to_owned()),
            _ => {}
        }
    }
    error.into()
}

fn not_taken_back(error: NotTakenBack) -> Failure {
    match error {
        NotTakenBack::Registry(error) => error.into(),
        NotTakenBack::NoSuchRollout { .. } => {
            Failure::not_found(error.to_string()).hint("`cogo config history` shows them all")
        }
        NotTakenBack::DoesNotHold { .. } | NotTakenBack::Overtaken { .. } => {
            Failure::conflict(error.to_string()).hint("`cogo config propose` sets what shall hold instead")
        }
    }
}
