//! Waits for what a running tree shall look like.

use std::time::Duration;

use cogo_supervision::{Handle, Node, Options};
use tokio::{sync::broadcast::error::RecvError, time::timeout};

/// Longer than anything here takes, so that a failure is a failure and not a hang.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// A period that no test outlives, so that every restart counts however slow the machine is.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Options with a long patience: what was killed may take its time to be gone on a busy machine, and is not leaked.
pub(crate) fn options() -> Options {
    Options { seed: 1, patience: LONG, ..Options::default() }
}

/// Options with a short patience, so that leaks are seen soon.
pub(crate) fn hasty_options() -> Options {
    Options { patience: Duration::from_millis(200), ..options() }
}

/// The picture of the tree once it is as wanted.
pub(crate) async fn until(handle: &Handle, is_as_wanted: impl Fn(&Node) -> bool) -> Node {
    let mut events = handle.events();
    let look = async {
        loop {
            let tree = handle.tree().await;
            if is_as_wanted(&tree) {
                return tree;
            }
            if matches!(events.recv().await, Err(RecvError::Closed)) {
                return handle.tree().await;
            }
        }
    };
    match timeout(LONG, look).await {
        Ok(tree) if is_as_wanted(&tree) => tree,
        Ok(tree) => panic!("the tree ended as {}", short(&tree)),
        Err(_) => panic!("the tree stays {}", short(&handle.tree().await)),
    }
}

fn short(tree: &Node) -> String {
    let nodes = tree.flatten().into_iter().take(20);
    nodes.map(|node| format!("\n{} {:?} {} {:?}", node.path, node.state, node.restarts, node.last_exit)).collect()
}
