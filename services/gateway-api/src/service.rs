//! The front door as a process of the fleet.

use std::sync::Arc;

use cogo_contracts::Route;
use cogo_service_runtime::{Frame, Reach, Service};
use tracing::{info, warn};

use crate::{
    Gateway, Settings, database_guard,
    gateway::{self, Parts},
};

/// The process `cogo-gateway-api`.
#[derive(Debug)]
pub struct GatewayApi;

impl Service for GatewayApi {
    const NAME: &'static str = "gateway-api";
    const DOMAIN: &'static str = "gateway";
    const LEVEL: i16 = 1;
    const PORT: u16 = 3000;
    const CAPABILITIES: &'static [&'static str] = &["http-ingress", "task-status", "task-stream"];
    const ROUTE: Option<Route> = None;
    type Settings = Settings;

    fn authenticates(settings: &Settings) -> bool {
        !settings.api_keys.is_empty()
    }

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let parts = Parts {
            bus: frame.bus().clone(),
            schemas: frame.schemas().clone(),
            wakeups: frame.wakeups().clone(),
            metrics: frame.metrics().clone(),
            database: frame.dependency("database", Reach::Run, &database_guard())?,
            stop: frame.stop().soft().clone(),
            tracker: frame.tracker().clone(),
        };
        let gateway = Gateway::new(parts, frame.settings())?;
        gateway.expect_safe(frame.common().bind)?;
        if gateway.is_open() {
            warn!("no API key configured: open to every caller on this machine; set COGO_API_KEYS to require one");
        } else {
            info!("callers need an API key");
        }
        frame.routes(gateway::router(Arc::new(gateway)));
        Ok(())
    }
}
