//! The process: what it puts into the frame.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Frame, Service};

use crate::{
    brain::Brain, handler::Decider, http, observe::Lookout, policy::Policy, settings::Settings, store::forget_decisions,
};

/// Time between two removals of old decisions.
const FORGET: Duration = Duration::from_secs(3600);
/// Decisions removed at once.
const FORGET_ROWS: i64 = 5000;

/// The process `cogo-orchestrator-brain`.
#[derive(Debug)]
pub struct OrchestratorBrain;

impl Service for OrchestratorBrain {
    const NAME: &'static str = "orchestrator-brain";
    const DOMAIN: &'static str = "orchestrator";
    const LEVEL: i16 = 1;
    const PORT: u16 = 3001;
    const CAPABILITIES: &'static [&'static str] = &["decide"];
    const ROUTE: Option<Route> = Some(routes::DECIDE);
    type Settings = Settings;

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let policy = Policy::new(frame.settings()).context("read the policy")?;
        let brain = Arc::new(Brain::new(frame.pool().clone(), policy).looking_at(frame.follow_registry()));
        frame.routes(http::routes(Arc::clone(&brain), frame.bus().clone()));
        frame.worker(Decider::new(Arc::clone(&brain)));
        let period = Duration::from_millis(frame.settings().observe_ms);
        let (observing, lookout) = (Arc::clone(&brain), Arc::new(Lookout::new(frame.pool())));
        frame.chore("observe", period, move || {
            let (brain, lookout) = (Arc::clone(&observing), Arc::clone(&lookout));
            async move {
                let learned = lookout.look(&brain).await?;
                Ok((learned > 0).then(|| format!("learned from {learned} outcomes")))
            }
        });
        let keep = Duration::from_secs(u64::from(frame.settings().decision_retention_days) * 24 * 3600);
        frame.chore("forget", FORGET, move || {
            let pool = brain.pool().clone();
            async move {
                let removed = forget_decisions(&pool, keep, FORGET_ROWS).await.context("remove old decisions")?;
                Ok((removed > 0).then(|| format!("removed {removed} old decisions")))
            }
        });
        Ok(())
    }
}
