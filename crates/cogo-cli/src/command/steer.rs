//! `cogo drain`, `cogo restart`, `cogo scale`: change the running fleet through its supervision tree.

use std::time::Duration;

use clap::Args;
use cogo_registry_core::{PoolState, Pools, ScalingDecision};
use serde::Serialize;

use crate::{
    command::outside,
    context::Context,
    failure::Failure,
    fleet::{Changed, Request, ask, operator},
    output::table,
};

/// A domain stops one process after the other, each with its time to finish.
const DONE_WITHIN: Duration = Duration::from_secs(600);
/// Decisions that are shown.
const SHOWN_DECISIONS: u32 = 20;

/// Let a process, domain, instance or agent of level 3 finish what it has and stop; only `cogo resume` or `cogo
/// restart` brings it back, also when the fleet is started anew.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo drain rag-embed\n  cogo drain rag\n  cogo drain rag-embed/1 --because \"disk is full\" --json"
)]
pub(crate) struct Drain {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo tree`; or an agent of level 3.
    target: String,
    /// Why, for whoever finds it down.
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
}

impl Drain {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let because = self.because.clone();
        let request = Request::Drain { target: self.target.clone(), by: operator(), because };
        let Err(failure) = steer(context, "draining", &request).await else { return Ok(()) };
        if !outside::may_be_outside(&failure) {
            return Err(failure);
        }
        match outside::drain(context, &self.target, self.because.as_deref()).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(failure),
        }
    }
}

/// Stop and start a process, domain or instance, also one that is down; instances of a pool one after the other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo restart gateway-chat\n  cogo restart rag\n  cogo restart rag-embed/1 --json")]
pub(crate) struct Restart {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo tree`.
    target: String,
}

impl Restart {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        steer(context, "restarting", &Request::Restart { target: self.target, by: operator() }).await
    }
}

/// Set how many instances of a process run; those taken away finish what they have. Without a number: show why it has
/// as many as it has.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo scale rag-embed 3\n  cogo scale rag-embed\n  cogo scale rag-embed 1 --json")]
pub(crate) struct Scale {
    /// A process with a `pool` in the list of processes.
    process: String,
    /// How many instances, within the bounds of the pool; absent: show the pool and the last decisions about it.
    instances: Option<u32>,
}

impl Scale {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.instances {
            Some(instances) => {
                let request = Request::Scale { process: self.process, instances };
                steer(context, "scaling", &request).await
            }
            None => show_pool(context, &self.process).await,
        }
    }
}

/// A pool with the last decisions about it, newest first.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    pool: PoolState,
    decisions: Vec<ScalingDecision>,
}

async fn show_pool(context: &Context, process: &str) -> Result<(), Failure> {
    let pools = Pools::new(context.bus().await?.pool().clone());
    let known = pools.list().await?;
    let names: Vec<String> = known.iter().map(|pool| pool.process.clone()).collect();
    let Some(pool) = known.into_iter().find(|pool| pool.process == process) else {
        let which = if names.is_empty() { "none is".to_owned() } else { format!("{} are", names.join(", ")) };
        return Err(Failure::not_found(format!("No fleet has scaled {process} on this database")).hint(format!(
            "{which} known; a process is scaled by its queue where its `pool` has a min below its max"
        )));
    };
    let decisions = pools.decisions(process, SHOWN_DECISIONS).await?;
    let shown = Shown { pool, decisions };
    context.output.either(&shown, || {
        let PoolState { desired, min_count, max_count, owner, .. } = &shown.pool;
        let owner = owner.as_deref().unwrap_or("nobody");
        let head = format!("{process}: {desired} of {min_count} to {max_count}, decided by {owner}");
        let rows = shown.decisions.iter().map(|decision| {
            let count = format!("{} -> {}", decision.from_count, decision.to_count);
            [decision.at.format("%m-%d %H:%M:%S").to_string(), count, decision.sentence.clone()]
        });
        format!("{head}\n\n{}", table(["at (UTC)", "count", "why"], rows))
    })
}

async fn steer(context: &Context, doing: &str, request: &Request) -> Result<(), Failure> {
    let spinner = context.output.spinner(doing);
    let changed: Result<Changed, Failure> = ask(&context.home, request, DONE_WITHIN).await;
    spinner.finish_and_clear();
    let changed = changed?;
    if !context.output.is_json() {
        if !changed.changed {
            context.output.note("nothing had to be done");
        }
        if !changed.kept {
            context.output.note("the database could not be told: the next `cogo up` knows nothing of it");
        }
    }
    context.output.either(&changed, || {
        let rows = changed.instances.iter().map(|instance| {
            [
                instance.path.clone(),
                instance.state.clone(),
                instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                instance.last_exit.clone().unwrap_or_default(),
            ]
        });
        table(["agent", "state", ">pid", "last exit"], rows)
    })
}
