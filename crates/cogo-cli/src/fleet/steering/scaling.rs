//! How many instances a process has: as an operator asks, or as the autoscaler decides.

use std::{collections::HashMap, sync::PoisonError};

use cogo_supervision::NodeState;
use tracing::info;

use super::Steering;
use crate::{
    failure::Failure,
    fleet::{changed::Changed, target::Target},
};

impl Steering {
    /// Gives a process so many instances, as an operator asks; slots are low numbers, the highest go first.
    pub(crate) async fn scale(&self, name: &str, instances: u32) -> Result<Changed, Failure> {
        self.resize(name, instances, true).await
    }

    /// The same as the autoscaler decided, unless an operator asked for another number since.
    pub(crate) async fn adjust(&self, process: &str, instances: u32) -> Result<Changed, Failure> {
        self.resize(process, instances, false).await
    }

    /// What an operator asked for and [`Steering::adopt`] was not told of yet.
    pub(crate) fn asked(&self, process: &str) -> Option<u32> {
        self.lock_asked().get(process).copied()
    }

    /// What an operator asked for is what the autoscaler goes on from.
    pub(crate) fn adopt(&self, process: &str, instances: u32) {
        let mut asked = self.lock_asked();
        if asked.get(process) == Some(&instances) {
            asked.remove(process);
        }
    }

    async fn resize(&self, name: &str, instances: u32, by_operator: bool) -> Result<Changed, Failure> {
        let target = Target::of(&self.list, name)?;
        let Target::Process { process, path } = &target else {
            return Err(Failure::conflict(format!("{name} is not a process"))
                .hint("only a process as a whole has a number of instances"));
        };
        let pool = self.launcher(process)?.process.pool();
        if !(pool.min..=pool.max).contains(&instances) {
            let bounds =
                if pool.min == pool.max { pool.min.to_string() } else { format!("{} to {}", pool.min, pool.max) };
            return Err(Failure::conflict(format!("{process} may have {bounds} instances, not {instances}")).hint(
                "the bounds are `pool` in the list of processes (deploy/processes.toml, or --processes of `cogo up`)",
            ));
        }
        let _turn = self.turn().await?;
        if self.node(path).await?.is_none_or(|node| node.state == NodeState::Stopped) {
            return Err(
                Failure::conflict(format!("{process} is down")).hint(format!("`cogo restart {process}` starts it"))
            );
        }
        if by_operator {
            self.lock_asked().insert(process.clone(), instances);
        } else if let Some(asked) = self.asked(process).filter(|&asked| asked != instances) {
            return Err(Failure::conflict(format!("An operator asked for {asked} instances of {process} meanwhile")));
        }
        info!(event = "scale", agent = path, instances, "scaled");
        self.lock_wanted().insert(process.clone(), instances);
        let changed = self.fill(process).await?;
        self.wait_until_ready(|path| target.holds(path)).await?;
        Ok(self.changed(&target, changed, true).await)
    }

    fn lock_asked(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
