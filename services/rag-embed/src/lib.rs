//! Reads files, chunks them, indexes them at once and gives them vectors afterwards.

mod embed;

use cogo_contracts::{Route, routes};
use cogo_model_client::{Secret as ModelSecret, Settings as ModelSettings};
use cogo_service_runtime::{Frame, Secret, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

pub use embed::Embed;

/// Settings of rag-embed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Settings {
    /// OpenAI-compatible endpoint, as in `http://localhost:11434/v1`; empty: local vectors without a model.
    pub model_base_url: String,
    /// Key of the endpoint.
    pub model_api_key: Option<Secret>,
    /// Model for vectors; empty: local vectors without a model.
    pub model_embedding: String,
    /// Length that its vectors must have.
    pub model_embedding_dimensions: Option<usize>,
}

impl Settings {
    fn model(&self) -> ModelSettings {
        ModelSettings {
            base_url: self.model_base_url.clone(),
            api_key: self.model_api_key.as_ref().map(|key| ModelSecret::new(key.reveal())),
            embedding_model: self.model_embedding.clone(),
            embedding_dimensions: self.model_embedding_dimensions,
            ..ModelSettings::default()
        }
    }
}

/// The process.
pub struct RagEmbed;

impl Service for RagEmbed {
    const NAME: &'static str = "rag-embed";
    const DOMAIN: &'static str = "rag";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3011;
    const CAPABILITIES: &'static [&'static str] = &["embed"];
    const ROUTE: Option<Route> = Some(routes::EMBED);
    type Settings = Settings;

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let handler = Embed {
            pool: frame.pool().clone(),
            allowed_roots: frame.allowed_roots()?,
            embedder: OnceCell::new(),
            model: frame.settings().model(),
        };
        frame.worker(handler);
        Ok(())
    }
}
