//! `cogo suspend`, `cogo resume`: agents that stay registered but claim nothing, through the registry.

use clap::Args;
use cogo_contracts::AgentState;
use cogo_registry_core::{Agent, Error, Registry};
use serde::Serialize;

use crate::{context::Context, failure::Failure, output::table};

/// Let agents claim nothing until `cogo resume`; they stay registered and finish what they have.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo suspend rag-embed\n  cogo suspend rag\n  cogo suspend rag-embed/1 --json\n\n\
        The registry holds it: it also reaches agents on other machines, and ends with the run of the process."
)]
pub(crate) struct Suspend {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo agents`.
    target: String,
}

/// Let suspended agents claim again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo resume rag-embed\n  cogo resume rag\n  cogo resume rag-embed/1 --json")]
pub(crate) struct Resume {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo agents`.
    target: String,
}

/// One agent after the change.
#[derive(Debug, Serialize)]
struct Told {
    agent: String,
    holder: String,
    before: AgentState,
    state: AgentState,
}

impl Suspend {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let registry = Registry::new(context.pool().await?);
        let meant = meant(&registry, &self.target).await?;
        for agent in &meant {
            tolerate(registry.suspend(agent.id.instance_id).await)?;
        }
        told(context, &registry, &self.target, meant, &[AgentState::Suspended]).await
    }
}

impl Resume {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let registry = Registry::new(context.pool().await?);
        let meant = meant(&registry, &self.target).await?;
        for agent in &meant {
            tolerate(registry.resume(agent.id.instance_id).await)?;
        }
        told(context, &registry, &self.target, meant, &[AgentState::Active, AgentState::Suspect]).await
    }
}

/// One agent that cannot be told shall not keep the others from it; its state is shown in the end.
fn tolerate<T>(told: Result<T, Error>) -> Result<(), Failure> {
    match told {
        Ok(_) | Err(Error::NotAllowed { .. } | Error::NoSuchAgent { .. } | Error::Ended { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The living agents that the target names.
async fn meant(registry: &Registry, target: &str) -> Result<Vec<Agent>, Failure> {
    let agents = registry.list().await?;
    let mut known: Vec<String> =
        agents.iter().flat_map(|agent| [agent.id.domain.clone(), agent.id.name.clone()]).collect();
    known.sort();
    known.dedup();
    let by_name = |agent: &Agent| agent.id.name == target || agent.id.instance() == target;
    let of_process: Vec<Agent> = agents.iter().filter(|agent| by_name(agent)).cloned().collect();
    // a process comes before a domain of its name, as in the tree
    if !of_process.is_empty() {
        return Ok(of_process);
    }
    let of_domain: Vec<Agent> = agents.into_iter().filter(|agent| agent.id.domain == target).collect();
    if !of_domain.is_empty() {
        return Ok(of_domain);
    }
    let failure = Failure::not_found(format!("No living agent is of a process, domain or instance {target}"));
    Err(match known.is_empty() {
        true => failure.hint("start the fleet with `cogo up`; `cogo agents` shows who is registered"),
        false => failure.hint(format!("choose from {}; `cogo agents` shows the instances", known.join(", "))),
    })
}

/// Shows the agents as they are now; it failed if one is in another state than wanted.
async fn told(
    context: &Context,
    registry: &Registry,
    target: &str,
    meant: Vec<Agent>,
    wanted: &[AgentState],
) -> Result<(), Failure> {
    let now = registry.list().await?;
    let told: Vec<Told> = meant
        .into_iter()
        .map(|before| {
            let after = now.iter().find(|agent| agent.id.instance_id == before.id.instance_id);
            Told {
                agent: before.id.instance(),
                holder: before.holder,
                before: before.state,
                state: after.map_or(AgentState::Terminated, |agent| agent.state),
            }
        })
        .collect();
    context.output.either(&told, || {
        let rows = told.iter().map(|told| [told.agent.clone(), told.before.to_string(), told.state.to_string()]);
        table(["agent", "before", "state"], rows)
    })?;
    let others: Vec<String> = told
        .iter()
        .filter(|told| !wanted.contains(&told.state))
        .map(|told| format!("{} is {}", told.agent, told.state))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::conflict(format!("Not every agent of {target} could be told: {}", others.join(", ")))
        .hint("only an active agent can be suspended, and only a suspended one resumed"))
}
