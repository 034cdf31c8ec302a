//! Agents of level 3 in the commands of the fleet: no tree of processes holds them, the registry does.

use std::time::Duration;

use cogo_registry_core::{Agent, Error, Registry, Target};

use crate::{
    context::Context,
    failure::{Failure, Kind},
    fleet::{Floor, TreeNode},
    output::table,
};

/// A tree is drawn without them rather than later.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Tells agents of level 3 of this name or instance to finish and leave; `Ok(false)` if there are none.
///
/// # Errors
/// When the database does not answer.
pub(crate) async fn drain(context: &Context, target: &str, because: Option<&str>) -> Result<bool, Failure> {
    let registry = Registry::new(context.pool().await?);
    let meant: Vec<Agent> = registry
        .list()
        .await?
        .into_iter()
        .filter(|agent| is_outside(agent) && (agent.id.name == target || agent.id.instance() == target))
        .collect();
    let mut told = Vec::new();
    for agent in &meant {
        let run = Target::run(agent.id.instance_id);
        match registry.drain(because.map_or_else(|| run.clone(), |why| run.clone().because(why))).await {
            Ok(ordered) => told.push((agent.id.instance(), ordered.before, ordered.state)),
            // it has left by itself meanwhile
            Err(Error::NoSuchAgent { .. } | Error::NotAllowed { .. } | Error::Ended { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if meant.is_empty() {
        return Ok(false);
    }
    let values: Vec<_> = told
        .iter()
        .map(|(agent, before, state)| serde_json::json!({"agent": agent, "before": before, "state": state}))
        .collect();
    context.output.either(&values, || {
        let rows = told.iter().map(|(agent, before, state)| [agent.clone(), before.to_string(), state.to_string()]);
        table(["agent", "before", "state"], rows)
    })?;
    if !context.output.is_json() {
        context.output.note("it finishes what it has and leaves; `cogo agents --ended 5` shows when it has");
    }
    Ok(true)
}

/// Whether a failure of the tree may mean that the target is none of its own.
pub(crate) fn may_be_outside(failure: &Failure) -> bool {
    matches!(failure.kind, Kind::NotFound | Kind::Unavailable)
}

/// Hangs the agents of level 3 below the instances that answer for them; without a database, none.
pub(crate) async fn hang_into(context: &Context, tree: &mut TreeNode) {
    let listed = async { Registry::new(context.pool().await?).list().await.map_err(Failure::from) };
    match tokio::time::timeout(ANSWER_WITHIN, listed).await {
        Ok(Ok(agents)) => hang(tree, "", &agents),
        Ok(Err(_)) | Err(_) if context.output.is_json() => {}
        Ok(Err(_)) | Err(_) => context.output.note("agents of level 3 are not shown: the database does not answer"),
    }
}

fn is_outside(agent: &Agent) -> bool {
    agent.level == 3 && agent.parent.is_some()
}

fn hang(node: &mut TreeNode, above: &str, agents: &[Agent]) {
    if node.kind == Floor::Instance {
        let instance = format!("{above}/{}", node.name);
        let own = agents.iter().filter(|agent| is_outside(agent) && agent.parent.as_deref() == Some(&instance));
        node.children.extend(own.map(|agent| hanging(&node.path, agent)));
        return;
    }
    for child in &mut node.children {
        hang(child, &node.name, agents);
    }
}

fn hanging(above: &str, agent: &Agent) -> TreeNode {
    TreeNode {
        name: agent.id.instance(),
        path: format!("{above}/{}", agent.id.instance()),
        kind: Floor::External,
        state: agent.state.to_string(),
        state_for_s: 0.0,
        strategy: None,
        pid: Some(agent.location.pid).filter(|pid| *pid != 0),
        url: None,
        restarts: u32::try_from(agent.epoch.saturating_sub(1)).unwrap_or(u32::MAX),
        uptime_s: None,
        last_exit: None,
        dynamic: true,
        drained: false,
        order: None,
        children: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use cogo_contracts::{AgentId, AgentState, Location};
    use uuid::Uuid;

    use super::*;

    fn node(name: &str, path: &str, kind: Floor, children: Vec<TreeNode>) -> TreeNode {
        let text = serde_json::json!({
            "name": name, "path": path, "kind": kind, "state": "running", "state_for_s": 1.0, "strategy": null,
            "pid": 1, "url": null, "restarts": 0, "uptime_s": 1.0, "last_exit": null, "dynamic": false,
            "children": children,
        });
        serde_json::from_value(text).expect("a node")
    }

    fn agent(name: &str, level: i16, parent: Option<&str>) -> Agent {
        let text = serde_json::json!("2026-11-21T12:00:00Z");
        Agent {
            id: AgentId {
                domain: "sandbox".to_owned(),
                name: name.to_owned(),
                slot: 0,
                instance_id: Uuid::nil(),
                version: "1.0.0".parse().expect("a version"),
            },
            epoch: 3,
            state: AgentState::Suspended,
            holder: String::new(),
            capabilities: Vec::new(),
            location: Location { pid: 77, ..Location::default() },
            endpoints: Vec::new(),
            level,
            parent: parent.map(str::to_owned),
            registered_at: serde_json::from_value(text).expect("a time"),
            ended_at: None,
            end_reason: None,
            beat_age_ms: None,
            ready: true,
            in_flight: 0,
            cpu_cores: None,
            memory_bytes: None,
        }
    }

    #[test]
    fn agents_of_level_3_hang_below_the_instance_that_answers_for_them() {
        let instances = ["0", "1"].map(|slot| node(slot, &format!("sandbox/hub/{slot}"), Floor::Instance, Vec::new()));
        let process = node("hub", "sandbox/hub", Floor::Process, instances.to_vec());
        let mut tree = node("", "", Floor::Root, vec![node("sandbox", "sandbox", Floor::Domain, vec![process])]);
        let agents = [
            agent("figma-worker", 3, Some("hub/1")),
            agent("lost-worker", 3, Some("hub/2")),
            agent("hub", 2, None),
            agent("inner", 2, Some("hub/0")),
        ];
        hang(&mut tree, "", &agents);
        let [first, second] = tree.children[0].children[0].children.as_slice() else { panic!("{tree:?}") };
        assert!(first.children.is_empty(), "{first:?}");
        let [child] = second.children.as_slice() else { panic!("{second:?}") };
        assert_eq!((child.path.as_str(), child.kind), ("sandbox/hub/1/figma-worker/0", Floor::External));
        assert_eq!((child.state.as_str(), child.pid, child.restarts), ("suspended", Some(77), 2));
    }
}
