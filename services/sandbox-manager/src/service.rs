//! The sandbox manager as a process of the fleet.

use std::sync::Arc;

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Frame, Service};
use cogo_supervision::probe::{Kind, Spec};
use tracing::{info, warn};

use crate::{Manager, Settings, handler::RunCommand, http};

/// The process `cogo-sandbox-manager`.
#[derive(Debug)]
pub struct SandboxManager;

impl Service for SandboxManager {
    const NAME: &'static str = "sandbox-manager";
    const DOMAIN: &'static str = "sandbox";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3013;
    const CAPABILITIES: &'static [&'static str] = &["sandbox-run", "sandbox-workers"];
    const ROUTE: Option<Route> = Some(routes::SANDBOX);
    type Settings = Settings;

    fn authenticates(settings: &Settings) -> bool {
        settings.worker_token.is_some()
    }

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        if settings.allow_local {
            warn!("commands run on this machine without isolation while no worker is connected (allow_local)");
        } else {
            info!("commands run on connected workers only (allow_local is false)");
        }
        let (dependencies, stop) = (frame.dependencies().clone(), frame.stop().hard().clone());
        let manager = Arc::new(Manager::new(settings, dependencies, stop, frame.tracker().clone())?);
        frame.routes(http::router(Arc::clone(&manager)));
        let asked = Arc::clone(&manager);
        frame.probe(Spec::new("sandbox workers", Kind::Advisory), move || {
            std::future::ready(asked.expect_worker().map_err(|refusal| refusal.to_string()))
        });
        frame.worker(RunCommand(manager));
        // what works outside of the fleet, of whatever kind, is of level 3 and stands below this process
        frame.owns_children();
        Ok(())
    }
}
