//! The tree of a running fleet as `cogo tree` shows it.

use std::time::Duration;

use cogo_registry_core::StandingOrder;
use cogo_supervision::{Node, NodeState, Strategy};
use serde::{Deserialize, Serialize};

use crate::fleet::FleetState;

/// What a node of the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Floor {
    Root,
    Domain,
    Process,
    Instance,
    /// An agent of level 3 below the instance that answers for it; the registry knows it, no supervisor does.
    External,
}

/// One node with everything below it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TreeNode {
    /// Empty for the root.
    pub(crate) name: String,
    /// Its names from the top, joined by `/`.
    pub(crate) path: String,
    pub(crate) kind: Floor,
    /// `starting`, `running`, `ended`, `stopping`, `restarting` or `stopped`.
    pub(crate) state: String,
    /// Seconds since that state began.
    pub(crate) state_for_s: f64,
    /// What it restarts together, for groups.
    pub(crate) strategy: Option<Strategy>,
    pub(crate) pid: Option<u32>,
    /// Where an instance answers.
    pub(crate) url: Option<String>,
    /// How often its supervisor has started it again.
    pub(crate) restarts: u32,
    /// Seconds since it was started, if it runs.
    pub(crate) uptime_s: Option<f64>,
    pub(crate) last_exit: Option<TreeExit>,
    /// Whether it was added while the fleet ran.
    pub(crate) dynamic: bool,
    /// Whether an operator drained it: it stays down until it, or what it is part of, is resumed or
    /// restarted by name.
    #[serde(default)]
    pub(crate) drained: bool,
    /// What was ordered of it, by whom, when and why.
    #[serde(default)]
    pub(crate) order: Option<StandingOrder>,
    pub(crate) children: Vec<TreeNode>,
}

/// The last end of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TreeExit {
    /// `normal`, `shutdown`, `abnormal`, `killed` or `final`.
    pub(crate) kind: String,
    /// Why, in words.
    pub(crate) reason: String,
    /// Seconds since then.
    pub(crate) ago_s: f64,
}

/// The picture at this time since the tree began.
pub(crate) fn drawn(node: &Node, now: Duration, state: &FleetState, is_process: &dyn Fn(&str) -> bool) -> TreeNode {
    let ago = |then: Duration| seconds(now.saturating_sub(then));
    let instance = state.processes.iter().find(|process| process.path == node.path);
    TreeNode {
        name: node.name.clone(),
        path: node.path.clone(),
        kind: match node.strategy {
            None => Floor::Instance,
            Some(_) if node.path.is_empty() => Floor::Root,
            Some(_) if is_process(&node.path) => Floor::Process,
            Some(_) => Floor::Domain,
        },
        state: word(&node.state),
        state_for_s: ago(node.since),
        strategy: node.strategy,
        pid: node.pid,
        url: instance.filter(|process| process.port != 0).map(|process| process.url()),
        restarts: node.restarts,
        uptime_s: (node.state == NodeState::Running).then(|| ago(node.since)),
        last_exit: node.last_exit.as_ref().map(|last| TreeExit {
            kind: serde_json::to_value(&last.exit)
                .ok()
                .and_then(|exit| Some(exit.get("kind")?.as_str()?.to_owned()))
                .unwrap_or_default(),
            reason: last.exit.to_string(),
            ago_s: ago(last.at),
        }),
        dynamic: node.dynamic,
        drained: node.parked,
        order: None,
        children: node.children.iter().map(|child| drawn(child, now, state, is_process)).collect(),
    }
}

/// A state as it is written.
pub(crate) fn word(state: &NodeState) -> String {
    let value = serde_json::to_value(state).unwrap_or_default();
    value.as_str().unwrap_or("unknown").to_owned()
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
