//! `cogo agents`: who is in the fleet, as the registry knows it.

use clap::Args;
use cogo_contracts::AgentState;
use cogo_registry_core::{Agent, Registry, StandingOrders};

use crate::{
    context::Context,
    failure::Failure,
    fleet::told,
    format,
    output::{Look, Paint, table},
};

/// Show the registered agents: level and parent, version, state, last beat, work in hand and place.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo agents\n  cogo agents --ended 20 --json")]
pub(crate) struct Agents {
    /// Show this many runs that have ended instead, the newest first.
    #[arg(long, value_name = "N")]
    ended: Option<u32>,
}

impl Agents {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let pool = context.pool().await?;
        let registry = Registry::new(pool.clone());
        let agents = match self.ended {
            Some(limit) => registry.ended(limit).await?,
            None => registry.list().await?,
        };
        let output = &context.output;
        if agents.is_empty() && !output.is_json() {
            output.note("no agents");
        }
        let orders = match self.ended {
            Some(_) => Vec::new(),
            None => StandingOrders::new(pool).list().await?,
        };
        output.either(&agents, || {
            let heads = ["agent", "level", "version", "state", ">beat", ">in flight", ">epoch", "place", "holder"];
            let text = table(heads, agents.iter().map(row));
            let lines = text.lines().map(|line| coloured(output.paint, line));
            let gap = (!orders.is_empty()).then(String::new);
            let orders = orders.iter().map(|order| output.paint.paint(Look::Warning, &told(order)));
            lines.chain(gap).chain(orders).collect::<Vec<_>>().join("\n")
        })
    }
}

fn row(agent: &Agent) -> [String; 9] {
    let region = agent.location.region.as_deref().map_or_else(String::new, |region| format!(" {region}"));
    let state = match (&agent.end_reason, agent.state) {
        (Some(reason), _) => format!("{}: {}", agent.state, format::shortened(reason, 40)),
        (None, AgentState::Active) if !agent.ready => "active, not ready".to_owned(),
        (None, state) => state.to_string(),
    };
    [
        agent.id.instance(),
        match &agent.parent {
            Some(parent) => format!("{} of {parent}", agent.level),
            None => agent.level.to_string(),
        },
        agent.id.version.to_string(),
        state,
        format::age(agent.beat_age_ms),
        agent.in_flight.to_string(),
        agent.epoch.to_string(),
        format!("{}{region} pid {}", agent.location.host, agent.location.pid),
        agent.id.instance_id.simple().to_string().chars().take(12).collect(),
    ]
}

fn coloured(paint: Paint, line: &str) -> String {
    if line.contains(" suspect ") || line.contains("not ready") {
        return paint.paint(Look::Warning, line);
    }
    line.to_owned()
}
