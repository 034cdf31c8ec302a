//! The process: what it puts into the frame.

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{DependencySettings, Frame, Reach, Service};

use crate::{agents::Agents, handler::Dispatcher, settings::Settings};

/// The process `cogo-executor-dispatcher`.
#[derive(Debug)]
pub struct ExecutorDispatcher;

impl Service for ExecutorDispatcher {
    const NAME: &'static str = "executor-dispatcher";
    const DOMAIN: &'static str = "executor";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3012;
    const CAPABILITIES: &'static [&'static str] = &["dispatch"];
    const ROUTE: Option<Route> = Some(routes::DISPATCH);
    type Settings = Settings;

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        frame.settings().check()?;
        // the names of agents are a help: a database that fails is not waited for on their account
        let registry = frame.dependency("registry in the database", Reach::Run, &DependencySettings::default())?;
        let agents = Agents::new(frame.follow_registry(), frame.pool().clone(), registry);
        let dispatcher = Dispatcher::new(agents, frame.settings().clone());
        frame.worker(dispatcher);
        Ok(())
    }
}
