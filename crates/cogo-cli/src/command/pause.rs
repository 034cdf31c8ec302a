//! `cogo suspend`, `cogo resume`: agents that stay registered but claim nothing, through the registry; and the way back
//! from every standing order.

use std::time::Duration;

use clap::Args;
use cogo_contracts::AgentState;
use cogo_registry_core::{
    Agent, Error, NewOrder, OrderedState, Registry, StandingOrder, StandingOrders, Subject, Target,
};
use serde::Serialize;

use crate::{
    context::Context,
    failure::{Failure, Kind},
    fleet::{Changed, Request, ask, first_slot, operator},
    output::table,
};

/// A domain starts one process after the other, each until it is ready.
const DONE_WITHIN: Duration = Duration::from_secs(600);

/// Let agents claim nothing until `cogo resume`; they stay registered and finish what they have.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo suspend rag-embed\n  cogo suspend rag --because \"index is rebuilt\"\n  cogo suspend rag-embed/1 --json\n\n\
        The registry holds it: it also reaches agents on other machines, and every run that begins later."
)]
pub(crate) struct Suspend {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo agents`.
    target: String,
    /// Why, for whoever finds it suspended.
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
}

/// Take back what was ordered: suspended agents claim again, what was drained is started.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo resume rag-embed\n  cogo resume rag\n  cogo resume rag-embed/1 --json")]
pub(crate) struct Resume {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo agents` and `cogo tree`.
    target: String,
}

/// One agent after the change.
#[derive(Debug, Serialize)]
struct Told {
    agent: String,
    holder: Option<String>,
    before: String,
    state: String,
}

impl Suspend {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let pool = context.pool().await?;
        let (registry, orders) = (Registry::new(pool.clone()), StandingOrders::new(pool));
        let agents = registry.list().await?;
        let Some(subject) = subject(&agents, &self.target) else { return Err(nobody(&agents, &self.target)) };
        let stands = orders.list().await?;
        let same = |order: &&StandingOrder| order.wish == OrderedState::Suspended && order.subject == subject;
        let order = NewOrder {
            subject: subject.clone(),
            fleet: None,
            by: operator(),
            reason: self.because.clone(),
            known_version: stands.iter().find(same).map_or(0, |order| order.version),
        };
        if orders.give(&order).await?.is_none() {
            return Err(changed_meanwhile(&self.target));
        }
        // once more: who has become active meanwhile did not see the order
        let meant = parts(registry.list().await?, &subject);
        for agent in &meant {
            let target = Target::run(agent.id.instance_id);
            let target = self.because.as_ref().map_or_else(|| target.clone(), |why| target.clone().because(why));
            tolerate(registry.suspend(target).await)?;
        }
        heed(context).await?;
        let told = told(&registry, meant).await?;
        show(context, &told)?;
        expect(&self.target, &told, &[AgentState::Suspended])
    }
}

impl Resume {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let pool = context.pool().await?;
        let (registry, orders) = (Registry::new(pool.clone()), StandingOrders::new(pool));
        let (agents, stands) = (registry.list().await?, orders.list().await?);
        let ordered = || stands.iter().map(|order| &order.subject).find(|subject| subject.name() == self.target);
        let subject = subject(&agents, &self.target).or_else(|| ordered().cloned());
        let mut lifted = 0;
        let mut resumed = Vec::new();
        if let Some(subject) = &subject {
            let suspended = |order: &&StandingOrder| order.wish == OrderedState::Suspended;
            let above = |order: &&StandingOrder| order.subject != *subject && order.subject.holds(subject);
            if let Some(above) = stands.iter().filter(suspended).find(above) {
                let name = above.subject.name();
                return Err(Failure::conflict(format!("{} is part of what is suspended: {above}", self.target))
                    .hint(format!("`cogo resume {name}` takes that back")));
            }
            lifted +=
                lift(&orders, stands.iter().filter(suspended).filter(|order| subject.holds(&order.subject))).await?;
            let meant = parts(agents.clone(), subject);
            for agent in &meant {
                tolerate(registry.resume(agent.id.instance_id).await)?;
            }
            resumed = told(&registry, meant).await?;
        }
        // last: what is started now shall find nothing that suspends it
        let started = match start_drained(context, &self.target).await? {
            Some(started) => started,
            None => {
                let fleet = first_slot()?;
                let drained = |order: &&StandingOrder| order.wish == OrderedState::Drained && order.is_for(fleet);
                let within = |order: &&StandingOrder| subject.as_ref().is_some_and(|whole| whole.holds(&order.subject));
                lifted += lift(&orders, stands.iter().filter(drained).filter(within)).await?;
                Vec::new()
            }
        };
        if resumed.is_empty() && started.is_empty() && lifted == 0 {
            return Err(nobody(&agents, &self.target));
        }
        if resumed.is_empty() && started.is_empty() {
            context.output.note("taken back; it starts with the next `cogo up`");
        }
        resumed.retain(|agent| !started.iter().any(|new| new.agent == agent.agent));
        let told: Vec<Told> = resumed.into_iter().chain(started).collect();
        show(context, &told)?;
        expect(&self.target, &told, &[AgentState::Active, AgentState::Suspect])
    }
}

/// Takes orders back; answers how many.
async fn lift(orders: &StandingOrders, lifted: impl Iterator<Item = &StandingOrder>) -> Result<usize, Failure> {
    let (by, mut count) = (operator(), 0);
    for order in lifted {
        if !orders.lift(order, &by).await? {
            return Err(changed_meanwhile(&order.subject.name()));
        }
        count += 1;
    }
    Ok(count)
}

/// Lets the fleet of this directory start what was drained of the target; none if there is no such fleet, or no such
/// part of it.
async fn start_drained(context: &Context, target: &str) -> Result<Option<Vec<Told>>, Failure> {
    let request = Request::Resume { target: target.to_owned(), by: operator() };
    let changed: Changed = match ask(&context.home, &request, DONE_WITHIN).await {
        Ok(changed) => changed,
        Err(failure) if matches!(failure.kind, Kind::Unavailable | Kind::NotFound) => return Ok(None),
        Err(failure) => return Err(failure),
    };
    if !changed.changed {
        return Ok(Some(Vec::new()));
    }
    let started = changed.instances.into_iter().map(|instance| {
        let parts: Vec<&str> = instance.path.rsplitn(3, '/').collect();
        let agent = match parts.as_slice() {
            [slot, process, ..] => format!("{process}/{slot}"),
            _ => instance.path.clone(),
        };
        Told { agent, holder: None, before: "drained".to_owned(), state: instance.state }
    });
    Ok(Some(started.collect()))
}

/// Lets the fleet of this directory, if there is one, know that orders were changed.
async fn heed(context: &Context) -> Result<(), Failure> {
    match ask::<()>(&context.home, &Request::Heed {}, DONE_WITHIN).await {
        Err(failure) if failure.kind != Kind::Unavailable => Err(failure),
        _ => Ok(()),
    }
}

fn changed_meanwhile(target: &str) -> Failure {
    Failure::conflict(format!("Somebody else changed the order about {target} meanwhile"))
        .hint("`cogo agents` shows the one that stands; try again")
}

/// One agent that cannot be told shall not keep the others from it; its state is shown in the end.
fn tolerate<T>(told: Result<T, Error>) -> Result<(), Failure> {
    match told {
        Ok(_) | Err(Error::NotAllowed { .. } | Error::NoSuchAgent { .. } | Error::Ended { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the target names among the living; a process comes before a domain of its name, as in the tree.
fn subject(agents: &[Agent], target: &str) -> Option<Subject> {
    let process = |agent: &Agent| Subject::Process { domain: agent.id.domain.clone(), process: agent.id.name.clone() };
    let domain = |agent: &Agent| Subject::Domain { domain: agent.id.domain.clone() };
    let named = agents.iter().find(|agent| agent.id.instance() == target).map(instance);
    let named = named.or_else(|| agents.iter().find(|agent| agent.id.name == target).map(process));
    named.or_else(|| agents.iter().find(|agent| agent.id.domain == target).map(domain))
}

fn instance(agent: &Agent) -> Subject {
    Subject::Instance {
        domain: agent.id.domain.clone(),
        process: agent.id.name.clone(),
        slot: u32::try_from(agent.id.slot).unwrap_or_default(),
    }
}

/// The agents that are part of it.
fn parts(agents: Vec<Agent>, whole: &Subject) -> Vec<Agent> {
    agents.into_iter().filter(|agent| whole.holds(&instance(agent))).collect()
}

fn nobody(agents: &[Agent], target: &str) -> Failure {
    let mut known: Vec<&str> =
        agents.iter().flat_map(|agent| [agent.id.domain.as_str(), agent.id.name.as_str()]).collect();
    known.sort_unstable();
    known.dedup();
    let failure = Failure::not_found(format!("No living agent is of a process, domain or instance {target}"));
    match known.is_empty() {
        true => failure.hint("start the fleet with `cogo up`; `cogo agents` shows who is registered"),
        false => failure.hint(format!("choose from {}; `cogo agents` shows the instances", known.join(", "))),
    }
}

/// The agents as they are now.
async fn told(registry: &Registry, meant: Vec<Agent>) -> Result<Vec<Told>, Failure> {
    let now = registry.list().await?;
    let told = meant.into_iter().map(|before| {
        let after = now.iter().find(|agent| agent.id.instance_id == before.id.instance_id);
        Told {
            agent: before.id.instance(),
            holder: Some(before.holder),
            before: before.state.to_string(),
            state: after.map_or(AgentState::Terminated, |agent| agent.state).to_string(),
        }
    });
    Ok(told.collect())
}

fn show(context: &Context, told: &[Told]) -> Result<(), Failure> {
    context.output.either(&told, || {
        let rows = told.iter().map(|told| [told.agent.clone(), told.before.clone(), told.state.clone()]);
        table(["agent", "before", "state"], rows)
    })
}

/// It failed if an agent is in another state than wanted.
fn expect(target: &str, told: &[Told], wanted: &[AgentState]) -> Result<(), Failure> {
    let is_wanted =
        |told: &&Told| told.holder.is_none() || wanted.iter().any(|wanted| wanted.to_string() == told.state);
    let others: Vec<String> =
        told.iter().filter(|told| !is_wanted(told)).map(|told| format!("{} is {}", told.agent, told.state)).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::conflict(format!("Not every agent of {target} could be told: {}", others.join(", ")))
        .hint("only an active agent can be suspended, and only a suspended one resumed"))
}
