//! What operators ordered of the parts of a fleet: as the database keeps it, and as this `cogo up` goes by it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cogo_registry_core::{Error, NewOrder, OrderedState, StandingOrder, StandingOrders};
use sqlx::PgPool;
use tracing::{info, warn};

use crate::{
    failure::Failure,
    fleet::{ProcessList, TreeNode, state::ProcessState, target::Target},
};

/// Longest wait for one answer of the database; without it the fleet is changed all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// The orders about one fleet; clones know the same.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    table: StandingOrders,
    list: Arc<ProcessList>,
    first_slot: u32,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// By path; none where the database could not be told.
    drained: HashMap<String, Option<StandingOrder>>,
    /// What the registry sees to, by path.
    suspended: HashMap<String, StandingOrder>,
}

impl Orders {
    /// Those that stand for the fleet of this list whose first slot is this.
    pub(crate) async fn load(pool: PgPool, list: Arc<ProcessList>, first_slot: u32) -> Result<Self, Failure> {
        let orders = Self { table: StandingOrders::new(pool), list, first_slot, known: Arc::default() };
        orders.reload().await?;
        Ok(orders)
    }

    /// Looks again at what stands in the database.
    pub(crate) async fn reload(&self) -> Result<(), Failure> {
        let stands = in_time(self.table.list()).await?;
        let mut known = self.lock();
        // what could not be told is not in there
        known.drained.retain(|_, order| order.is_none());
        known.suspended.clear();
        for order in stands.into_iter().filter(|order| order.is_for(self.first_slot)) {
            // one about a part that this fleet does not have is another's
            let Some(target) = Target::of_subject(&self.list, &order.subject) else { continue };
            let path = target.path().to_owned();
            match order.wish {
                OrderedState::Drained => drop(known.drained.insert(path, Some(order))),
                OrderedState::Suspended => drop(known.suspended.insert(path, order)),
            }
        }
        Ok(())
    }

    /// Writes down that the target shall be drained; false if the database does not answer, so that the order ends with
    /// this `cogo up`.
    pub(crate) async fn drain(&self, target: &Target, by: &str, reason: Option<String>) -> Result<bool, Failure> {
        let path = target.path();
        let known_version = self.lock().drained.get(path).and_then(Option::as_ref).map_or(0, |order| order.version);
        let order = NewOrder {
            subject: target.subject(&self.list),
            fleet: Some(u16::try_from(self.first_slot).unwrap_or(u16::MAX)),
            by: by.to_owned(),
            reason,
            known_version,
        };
        match in_time(self.table.give(&order)).await {
            Ok(Some(_)) => self.reload().await?,
            Ok(None) => {
                self.reload().await?;
                return Err(Failure::conflict(format!("Somebody else changed the order about {path} meanwhile"))
                    .hint("`cogo tree` shows the one that stands; try again"));
            }
            Err(failure) => {
                warn!(event = "order_not_kept", agent = path, error = failure.text(), "drained for this run only");
                self.lock().drained.entry(path.to_owned()).or_default();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes back every order to drain the target or a part of it; false if the database does not know of it yet.
    pub(crate) async fn lift(&self, target: &Target, by: &str) -> bool {
        let lifted: Vec<(String, Option<StandingOrder>)> =
            self.lock().drained.extract_if(|path, _| target.holds(path)).collect();
        let mut kept = true;
        for (path, order) in lifted {
            let Some(order) = order else { continue };
            match in_time(self.table.lift(&order, by)).await {
                Ok(true) => {}
                // somebody else's, which counts when the fleet is started the next time
                Ok(false) => kept = false,
                Err(failure) => {
                    warn!(
                        event = "order_not_lifted",
                        agent = path,
                        error = failure.text(),
                        "started for this run only"
                    );
                    kept = false;
                }
            }
        }
        kept
    }

    /// Writes to the log what stands.
    pub(crate) fn tell(&self) {
        for order in self.standing() {
            info!(event = "standing_order", agent = order.subject.name(), "{}", told(&order));
        }
    }

    /// Paths of all that is drained.
    pub(crate) fn drained(&self) -> Vec<String> {
        self.lock().drained.keys().cloned().collect()
    }

    /// Paths of the greatest parts of the target that are drained.
    pub(crate) fn drained_in(&self, target: &Target) -> Vec<String> {
        let known = self.lock();
        let mut paths: Vec<String> = known.drained.keys().filter(|path| target.holds(path)).cloned().collect();
        paths.retain(|path| !known.drained.keys().any(|above| is_below(path, above)));
        paths.sort();
        paths
    }

    /// Whether this, or what it is part of, is drained.
    pub(crate) fn is_drained(&self, path: &str) -> bool {
        self.lock().drained.keys().any(|order| is_at_or_below(path, order))
    }

    /// Path of what this is part of and what is drained as a whole.
    pub(crate) fn drained_above(&self, path: &str) -> Option<String> {
        self.lock().drained.keys().find(|above| is_below(path, above)).cloned()
    }

    /// Says of a process what is ordered of it.
    pub(crate) fn mark(&self, process: &mut ProcessState) {
        process.drained = self.is_drained(&process.path);
        process.suspended = self.lock().suspended.keys().any(|order| is_at_or_below(&process.path, order));
    }

    /// Hangs each order on the node that it is about.
    pub(crate) fn mark_tree(&self, node: &mut TreeNode) {
        let known = self.lock();
        mark_nodes(&known, node);
    }

    /// All that stand in the database, by name.
    pub(crate) fn standing(&self) -> Vec<StandingOrder> {
        let known = self.lock();
        let mut orders: Vec<StandingOrder> =
            known.drained.values().flatten().chain(known.suspended.values()).cloned().collect();
        orders.sort_by_key(|order| (order.subject.name(), order.version));
        orders
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands, and how it is taken back.
pub(crate) fn told(order: &StandingOrder) -> String {
    let name = order.subject.name();
    let effect = match order.wish {
        OrderedState::Drained => "starts it",
        OrderedState::Suspended => "lets it claim",
    };
    format!("{order}; `cogo resume {name}` {effect}")
}

fn mark_nodes(known: &Known, node: &mut TreeNode) {
    let drained = known.drained.get(&node.path).and_then(Option::as_ref);
    node.order = drained.or_else(|| known.suspended.get(&node.path)).cloned();
    for child in &mut node.children {
        mark_nodes(known, child);
    }
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    path == above || is_below(path, above)
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(Failure::unavailable("The database did not answer in time")),
    }
}
