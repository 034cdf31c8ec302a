//! Reads files, chunks them, indexes them at once and gives them vectors afterwards.

mod embed;

use anyhow::Context;
use cogo_contracts::{Route, routes};
use cogo_model_client::{Secret, Settings as ModelSettings};
use cogo_rag_core::embedder_of;
use cogo_service_runtime::{Frame, Service};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use embed::Embed;

/// Settings of rag-embed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Settings {
    /// OpenAI-compatible endpoint, as in `http://localhost:11434/v1`; empty: local vectors without a model.
    pub model_base_url: String,
    /// Key of the endpoint.
    pub model_api_key: Option<String>,
    /// Model for vectors; empty: local vectors without a model.
    pub model_embedding: String,
    /// Length that its vectors must have.
    pub model_embedding_dimensions: Option<usize>,
}

impl Settings {
    fn model(&self) -> ModelSettings {
        ModelSettings {
            base_url: self.model_base_url.clone(),
            api_key: self.model_api_key.clone().map(Secret::new),
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
        let embedder = embedder_of(frame.settings().model()).await.context("reach the embedding model")?;
        if embedder.degraded() {
            warn!(embedder = embedder.identity(), "no embedding model configured: vectors carry words, not meaning");
        } else {
            info!(embedder = embedder.identity(), "embedding model reached");
        }
        let handler = Embed { pool: frame.pool().clone(), allowed_roots: frame.allowed_roots()?, embedder };
        frame.worker(handler);
        Ok(())
    }
}
