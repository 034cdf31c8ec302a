//! Changes a running fleet through its tree: drain, restart, scale.

mod scaling;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cogo_supervision::{Handle, Node, NodeState, core::CallError};
use tracing::{info, warn};

use crate::{
    failure::Failure,
    fleet::{
        Home, Launcher, Orders, Phase, ProcessList, Record, TreeNode,
        changed::{Changed, ChangedInstance, no_instance, refused},
        last_words,
        picture::{drawn, word},
        probe::{probe_client, readiness_of},
        target::Target,
        tree::instance,
    },
};

/// How long an instance that was started may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The tree and everything needed to change it; clones steer the same fleet.
#[derive(Debug, Clone)]
pub(crate) struct Steering {
    pub(crate) handle: Handle,
    pub(crate) begun: Instant,
    pub(crate) list: Arc<ProcessList>,
    /// By the name of the process.
    pub(crate) launchers: Arc<HashMap<String, Launcher>>,
    pub(crate) record: Record,
    home: Home,
    /// How many instances each process shall have.
    wanted: Arc<Mutex<HashMap<String, u32>>>,
    /// What operators asked for that the autoscaler has not made its own.
    asked: Arc<Mutex<HashMap<String, u32>>>,
    pub(crate) orders: Orders,
    /// One change at a time, so that each starts from what the last one left.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Steering {
    pub(crate) fn new(
        handle: Handle,
        list: Arc<ProcessList>,
        launchers: Arc<HashMap<String, Launcher>>,
        record: Record,
        home: Home,
        orders: Orders,
    ) -> Self {
        let wanted = list.processes.iter().map(|process| (process.name.clone(), process.first_instances())).collect();
        Self {
            handle,
            begun: Instant::now(),
            list,
            launchers,
            record,
            home,
            wanted: Arc::new(Mutex::new(wanted)),
            asked: Arc::default(),
            orders,
            turn: Arc::default(),
        }
    }

    /// The tree as it is now.
    pub(crate) async fn picture(&self) -> TreeNode {
        let node = self.handle.tree().await;
        let is_process = |path: &str| self.launchers.values().any(|launcher| launcher.path == path);
        let mut tree = drawn(&node, self.begun.elapsed(), &self.record.state(), &is_process);
        self.orders.mark_tree(&mut tree);
        tree
    }

    /// Lets the target finish what it has, and stop; it stays down, also when the fleet is started anew, until it, or what
    /// it is part of, is resumed or restarted by name.
    pub(crate) async fn drain(&self, name: &str, by: &str, because: Option<String>) -> Result<Changed, Failure> {
        let target = Target::of(&self.list, name)?;
        let _turn = self.turn().await?;
        let node = self.node(target.path()).await?;
        let is_down = node.as_ref().is_none_or(|node| node.state == NodeState::Stopped);
        if node.is_none() && matches!(target, Target::Instance { .. }) {
            return Err(no_instance(&target));
        }
        info!(event = "drain", agent = target.path(), by, "drained by an operator");
        // before anything stops, so that nobody takes it for something that is missing
        let kept = self.orders.drain(&target, by, because).await?;
        self.note_orders();
        match self.handle.park_child(target.path()).await {
            Ok(()) => {}
            // what is down together with the group around it stays so as long as that does
            Err(CallError::NoSuchGroup { .. }) if is_down => {}
            Err(error) => {
                self.orders.lift(&target, by).await;
                self.note_orders();
                return Err(refused(&target, &error));
            }
        }
        Ok(self.changed(&target, !is_down, kept).await)
    }

    /// Stops and starts the target, one instance after the other and each ready before the next; a domain as a whole.
    pub(crate) async fn restart(&self, name: &str, by: &str) -> Result<Changed, Failure> {
        let target = Target::of(&self.list, name)?;
        let _turn = self.turn().await?;
        info!(event = "restart_asked", agent = target.path(), by, "restarted by an operator");
        let kept = self.orders.lift(&target, by).await;
        self.note_orders();
        self.start_anew(&target).await?;
        Ok(self.changed(&target, true, kept).await)
    }

    /// Takes back what was ordered of the target, and starts what was drained of it.
    pub(crate) async fn resume(&self, name: &str, by: &str) -> Result<Changed, Failure> {
        let target = Target::of(&self.list, name)?;
        let _turn = self.turn().await?;
        self.heed_orders().await?;
        if let Some(above) = self.orders.drained_above(target.path()) {
            return Err(Failure::conflict(format!("{} is part of {above}, which is drained", target.path()))
                .hint(format!("`cogo resume {above}` starts it")));
        }
        let drained = self.orders.drained_in(&target);
        info!(event = "resume", agent = target.path(), by, "orders taken back by an operator");
        let kept = self.orders.lift(&target, by).await;
        self.note_orders();
        for path in &drained {
            // an instance of a pool that has become smaller is not there
            if self.node(path).await?.is_some() {
                self.start_anew(&Target::of(&self.list, path)?).await?;
            }
        }
        Ok(self.changed(&target, !drained.is_empty(), kept).await)
    }

    /// Looks again at what stands in the database.
    pub(crate) async fn heed_orders(&self) -> Result<(), Failure> {
        self.orders.reload().await?;
        self.note_orders();
        Ok(())
    }

    /// Whether this, or what it is part of, was drained by name and not asked for since.
    pub(crate) fn is_drained(&self, path: &str) -> bool {
        self.orders.is_drained(path)
    }

    /// Brings a process that was started anew as a whole back to the instances that it shall have.
    pub(crate) async fn keep(&self, path: &str) {
        let Some(launcher) = self.launchers.values().find(|launcher| launcher.path == path) else { return };
        let Ok(_turn) = self.turn().await else { return };
        if let Err(failure) = self.fill(&launcher.process.name).await {
            warn!(event = "scale_failed", agent = path, error = failure.text(), "not every instance could be started");
        }
    }

    /// Waits for its turn; a fleet that stops takes no more wishes.
    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        let turn = self.turn.lock().await;
        if self.record.state().phase == Phase::Stopping {
            return Err(Failure::conflict("The fleet is stopping").hint("`cogo up` starts it again"));
        }
        Ok(turn)
    }

    async fn start_anew(&self, target: &Target) -> Result<(), Failure> {
        match target {
            Target::Instance { process, slot, path } => {
                if self.node(path).await?.is_none() {
                    return Err(no_instance(target));
                }
                self.restart_instance(process, *slot, path).await?;
            }
            Target::Process { process, path } => self.restart_process(process, path).await?,
            Target::Domain { path } => {
                self.restart_group(target, path).await?;
                for launcher in self.launchers.values().filter(|launcher| target.holds(&launcher.path)) {
                    self.fill(&launcher.process.name).await?;
                }
                self.wait_until_ready(|path| target.holds(path)).await?;
            }
        }
        Ok(())
    }

    async fn restart_process(&self, process: &str, path: &str) -> Result<(), Failure> {
        let target = Target::of(&self.list, process)?;
        let node = self.node(path).await?;
        if node.as_ref().is_none_or(|node| node.state != NodeState::Running) {
            self.restart_group(&target, path).await?;
        } else {
            let slots: Vec<u32> = node.iter().flat_map(slots_of).collect();
            for slot in slots {
                self.restart_instance(process, slot, &format!("{path}/{slot}")).await?;
            }
        }
        self.fill(process).await?;
        self.wait_until_ready(|instance| target.holds(instance)).await
    }

    async fn restart_instance(&self, process: &str, slot: u32, path: &str) -> Result<(), Failure> {
        let target = Target::Instance { process: process.to_owned(), slot, path: path.to_owned() };
        self.handle.terminate_child(path).await.map_err(|error| refused(&target, &error))?;
        match self.handle.restart_child(path).await {
            // a temporary one is forgotten once it is down
            Err(CallError::NotFound { .. }) => self.start(process, slot).await?,
            other => other.map_err(|error| refused(&target, &error))?,
        }
        self.wait_until_ready(|instance| instance == path).await
    }

    async fn restart_group(&self, target: &Target, path: &str) -> Result<(), Failure> {
        let is_up = self.node(path).await?.is_some_and(|node| node.state != NodeState::Stopped);
        if is_up {
            self.handle.terminate_child(path).await.map_err(|error| refused(target, &error))?;
        }
        self.handle.restart_child(path).await.map_err(|error| refused(target, &error))
    }

    /// Adds and removes instances until a running process has as many as it shall; whether anything had to be done.
    async fn fill(&self, process: &str) -> Result<bool, Failure> {
        let launcher = self.launcher(process)?;
        let wanted = self.lock_wanted().get(process).copied().unwrap_or(1);
        let Some(node) = self.node(&launcher.path).await? else { return Ok(false) };
        if node.state != NodeState::Running {
            return Ok(false);
        }
        let mut slots = slots_of(&node);
        slots.sort_unstable();
        let mut changed = false;
        while slots.len() > wanted as usize {
            let Some(slot) = slots.pop() else { break };
            self.remove(launcher, slot).await?;
            changed = true;
        }
        for free in launcher.first_slot.. {
            if slots.len() >= wanted as usize {
                break;
            }
            if !slots.contains(&free) {
                self.start(process, free).await?;
                slots.push(free);
                changed = true;
            }
        }
        // one that ended for good is given another chance, one that was drained is not
        let is_meant = |child: &&Node| child.state == NodeState::Stopped && !child.parked;
        for child in node.children.iter().filter(is_meant) {
            if child.name.parse().is_ok_and(|slot| slots.contains(&slot)) {
                let restarted = self.handle.restart_child(&child.path).await;
                restarted.map_err(|error| Failure::failed(format!("{} did not start", child.path)).because(&error))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    async fn start(&self, process: &str, slot: u32) -> Result<(), Failure> {
        let launcher = self.launcher(process)?;
        drop(launcher.home.fresh_log(&launcher.name(slot))?);
        let fresh = launcher.before_start(slot);
        let path = fresh.path.clone();
        self.record.add(fresh);
        self.note_orders();
        let child = instance(&launcher.process, slot, launcher.work(slot));
        let started = if self.is_drained(&path) {
            // it was forgotten with its group and is put back as it was
            self.handle.add_parked_child(&launcher.path, child).await
        } else {
            self.handle.start_child(&launcher.path, child).await
        };
        started.map_err(|error| {
            self.record.remove(&path);
            Failure::failed(format!("{path} did not start")).because(&error)
        })
    }

    async fn remove(&self, launcher: &Launcher, slot: u32) -> Result<(), Failure> {
        let path = format!("{}/{slot}", launcher.path);
        let target = Target::Instance { process: launcher.process.name.clone(), slot, path: path.clone() };
        self.handle.terminate_child(&path).await.map_err(|error| refused(&target, &error))?;
        match self.handle.delete_child(&path).await {
            // a temporary one is forgotten once it is down
            Ok(()) | Err(CallError::NotFound { .. }) => {}
            Err(error) => return Err(refused(&target, &error)),
        }
        self.record.remove(&path);
        Ok(())
    }

    async fn wait_until_ready(&self, is_meant: impl Fn(&str) -> bool) -> Result<(), Failure> {
        let client = probe_client()?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let state = self.record.state();
            let is_to_run = |path: &str| is_meant(path) && !self.is_drained(path);
            let meant = state.processes.iter().filter(|process| is_to_run(&process.path));
            let mut late = Vec::new();
            for process in meant {
                if !readiness_of(&client, process).await.is_as_meant() {
                    late.push(process);
                }
            }
            if late.is_empty() {
                return Ok(());
            }
            if state.phase == Phase::Stopping {
                return Err(Failure::conflict("The fleet is stopping"));
            }
            if Instant::now() >= deadline {
                let names: Vec<&str> = late.iter().map(|process| process.path.as_str()).collect();
                let words = late.iter().map(|process| last_words(&self.home.log_tail(&process.name)));
                let (limit, names) = (READY_WITHIN.as_secs(), names.join(", "));
                return Err(Failure::timeout(format!("Started, but not ready within {limit} s: {names}"))
                    .cause(words.collect::<Vec<_>>().join("; "))
                    .hint("`cogo tree --watch` shows what becomes of it"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn node(&self, path: &str) -> Result<Option<Node>, Failure> {
        let tree = self.handle.tree().await;
        Ok(tree.find(path).cloned())
    }

    async fn changed(&self, target: &Target, changed: bool, kept: bool) -> Changed {
        let tree = self.handle.tree().await;
        let meant = tree.flatten().into_iter().filter(|node| node.strategy.is_none() && target.holds(&node.path));
        let instances = meant.map(|node| ChangedInstance {
            path: node.path.clone(),
            state: word(&node.state),
            pid: node.pid,
            last_exit: node.last_exit.as_ref().map(|last| last.exit.to_string()),
        });
        Changed { target: target.path().to_owned(), changed, kept, instances: instances.collect() }
    }

    fn launcher(&self, process: &str) -> Result<&Launcher, Failure> {
        self.launchers.get(process).ok_or_else(|| Failure::not_found(format!("The fleet has no process {process}")))
    }

    /// Writes down what is ordered, for whoever reads the state of the fleet.
    pub(crate) fn note_orders(&self) {
        self.record.change(|state| {
            state.orders = self.orders.standing();
            state.processes.iter_mut().for_each(|process| self.orders.mark(process));
        });
    }

    fn lock_wanted(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of a process, in the order of their start.
fn slots_of(process: &Node) -> Vec<u32> {
    process.children.iter().filter_map(|child| child.name.parse().ok()).collect()
}
