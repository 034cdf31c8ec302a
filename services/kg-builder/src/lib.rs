//! Builds the code graph of a tree: what defines, imports and uses what.

mod build;

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Frame, NoSettings, Service};

pub use build::Build;

/// The process.
pub struct KgBuilder;

impl Service for KgBuilder {
    const NAME: &'static str = "kg-builder";
    const DOMAIN: &'static str = "kg";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3014;
    const CAPABILITIES: &'static [&'static str] = &["build-graph"];
    const ROUTE: Option<Route> = Some(routes::BUILD);
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        let handler = Build { pool: frame.pool().clone(), allowed_roots: frame.allowed_roots()? };
        frame.worker(handler);
        Ok(())
    }
}
