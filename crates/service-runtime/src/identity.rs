//! Who this process is, told to the registry for as long as it lives.

use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use cogo_registry_core::{
    AgentKey, Heartbeat, HeartbeatSettings, Level, Member, Registration, Registry, detect_location,
};
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{FrameSettings, Service, Stop};

/// A process before it has joined the fleet.
pub(crate) struct Identity {
    registration: Registration,
}

impl Identity {
    /// Puts together what the process says of itself.
    pub(crate) fn of_process<S: Service>(
        version: &str,
        common: &FrameSettings,
        address: SocketAddr,
    ) -> anyhow::Result<Self> {
        let environment: std::collections::HashMap<String, String> = std::env::vars().collect();
        let location = detect_location(|name: &str| environment.get(name).cloned());
        let version = semver::Version::parse(version).context("read the version of this build")?;
        let level = match S::LEVEL {
            1 => Level::Strategic,
            2 => Level::Operational,
            3 => Level::External,
            other => return Err(anyhow!("Level {other} of {} is not 1, 2 or 3", S::NAME)),
        };
        let slot = common.agent_slot;
        let mut registration = Registration::new(S::DOMAIN, S::NAME, slot, version, location)?.level(level);
        for capability in S::CAPABILITIES {
            registration = registration.capability(capability)?;
        }
        if let Some(route) = S::ROUTE {
            registration = registration.capability(&format!("route:{}", route.on_shard(common.agent_shard)))?;
        }
        if !common.agent_key.reveal().is_empty() {
            let key = AgentKey::parse(common.agent_key.reveal()).context("read COGO_AGENT_KEY")?;
            registration = registration.key(&key);
        }
        Ok(Self { registration: registration.endpoint("http", &format!("http://{address}")) })
    }

    /// The name under which this run claims first; it changes when it has to join anew.
    pub(crate) fn holder(&self) -> String {
        self.registration.id().holder()
    }

    /// Joins the registry and stays until `leave`; drains at the soft stop.
    pub(crate) fn join(self, pool: &PgPool, stop: &Stop, leave: CancellationToken, tracker: &TaskTracker) -> Member {
        let registry = Registry::new(pool.clone());
        let (heartbeat, member) = Heartbeat::new(&registry, self.registration, HeartbeatSettings::default());
        let (draining, soft) = (member.clone(), stop.soft().clone());
        tracker.spawn(async move {
            soft.cancelled().await;
            draining.drain();
        });
        tracker.spawn(async move {
            match heartbeat.run(leave).await {
                cogo_registry_core::Ended::Left => info!("left the registry"),
                other => warn!("the registry was left behind: {other:?}"),
            }
        });
        member
    }
}
