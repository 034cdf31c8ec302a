//! Looks at a tree, compares it with what is indexed and sends what changed to rag/embed and kg/build.

mod index;

use cogo_contracts::{Route, routes};
use cogo_service_runtime::{Frame, NoSettings, Service};

pub use index::Index;

/// The process.
pub struct RagDispatcher;

impl Service for RagDispatcher {
    const NAME: &'static str = "rag-dispatcher";
    const DOMAIN: &'static str = "rag";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3010;
    const CAPABILITIES: &'static [&'static str] = &["index"];
    const ROUTE: Option<Route> = Some(routes::INDEX);
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        let handler = Index { pool: frame.pool().clone(), allowed_roots: frame.allowed_roots()? };
        frame.worker(handler);
        Ok(())
    }
}
