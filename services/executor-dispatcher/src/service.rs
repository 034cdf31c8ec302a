//! The process: what it puts into the frame.

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Frame, Service};

use crate::{handler::Dispatcher, settings::Settings};

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
        let dispatcher = Dispatcher::new(frame.pool().clone(), frame.settings().clone());
        frame.worker(dispatcher);
        Ok(())
    }
}
