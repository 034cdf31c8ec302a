//! Draws the picture of a tree.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    GroupSpec, Kind, Node, NodeState,
    core::{
        RunId,
        child::Child,
        group::{Group, Phase},
    },
};

pub(super) fn of_root<W: Clone>(root: &Group<W>, groups: &HashMap<RunId, Group<W>>) -> Node {
    let state = match (&root.phase, &root.end) {
        (Phase::Over, _) => NodeState::Stopped,
        (_, Some(_)) => NodeState::Stopping,
        (Phase::Starting { then: super::group::AfterStart::Begin, .. }, None) => NodeState::Starting,
        (_, None) => NodeState::Running,
    };
    Node {
        name: String::new(),
        path: String::new(),
        strategy: Some(root.spec.strategy),
        state,
        since: Duration::ZERO,
        restarts: 0,
        last_exit: None,
        pid: None,
        dynamic: false,
        parked: false,
        children: children(root, groups),
    }
}

pub(super) fn before_start<W: Clone>(spec: &Arc<GroupSpec<W>>) -> Node {
    let root = Group::not_begun(spec, RunId(0), String::new());
    Node { state: NodeState::Stopped, ..of_root(&root, &HashMap::new()) }
}

fn children<W: Clone>(group: &Group<W>, groups: &HashMap<RunId, Group<W>>) -> Vec<Node> {
    let in_order = group.order.iter().filter_map(|name| group.children.get(name));
    in_order.map(|child| of_child(child, groups)).collect()
}

fn of_child<W: Clone>(child: &Child<W>, groups: &HashMap<RunId, Group<W>>) -> Node {
    let inside = match &child.spec.kind {
        Kind::Worker { .. } => Vec::new(),
        Kind::Group(spec) => match child.state.run().and_then(|run| groups.get(&run)) {
            Some(living) => children(living, groups),
            None => children_of_dead(spec, child, groups),
        },
    };
    Node {
        name: child.spec.name.clone(),
        path: child.path.clone(),
        strategy: match &child.spec.kind {
            Kind::Worker { .. } => None,
            Kind::Group(spec) => Some(spec.strategy),
        },
        state: child.state.of_node(),
        since: child.since,
        restarts: child.history.restarts,
        last_exit: child.history.last_exit.clone(),
        pid: child.pid,
        dynamic: child.dynamic,
        parked: child.history.parked,
        children: inside,
    }
}

/// A group that is down is drawn as it would be started.
fn children_of_dead<W: Clone>(spec: &GroupSpec<W>, child: &Child<W>, groups: &HashMap<RunId, Group<W>>) -> Vec<Node> {
    let histories = child.history.inside.clone();
    let mut group = Group::new(RunId(0), None, child.path.clone(), Arc::new(spec.clone()), histories);
    for inside in group.children.values_mut() {
        inside.since = child.since;
    }
    children(&group, groups)
}
