//! The process in its frame.

use cogo_contracts::Route;
use cogo_service_runtime::{Frame, Service};
use serde::{Deserialize, Serialize};

use crate::{Console, router};

/// Marker of the process.
#[derive(Debug)]
pub struct MetricsServer;

/// What it can be told beside the frame's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// Port of dashboard and metrics; absent: 3100 and the fleet's offset.
    pub metrics_port: Option<u16>,
}

impl Service for MetricsServer {
    const NAME: &'static str = "metrics-server";
    const DOMAIN: &'static str = "metrics";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3100;
    const CAPABILITIES: &'static [&'static str] = &["metrics", "dashboard"];
    const ROUTE: Option<Route> = None;
    type Settings = ServiceSettings;

    fn port(settings: &ServiceSettings) -> Option<u16> {
        settings.metrics_port
    }

    async fn start(frame: &mut Frame<ServiceSettings>) -> anyhow::Result<()> {
        let console = Console::new(frame.pool().clone(), frame.exposition().clone(), frame.stop().soft().clone());
        let console = console.asking_agents(frame.dependencies().clone())?;
        frame.tracker().spawn(console.sample_while_watched());
        frame.serves_metrics();
        frame.routes(router(console));
        Ok(())
    }
}
