//! Reads files, chunks them, indexes them at once and gives them vectors afterwards.

mod embed;
mod guarded;

use cogo_contracts::{Route, routes};
use cogo_model_client::{Secret as ModelSecret, Settings as ModelSettings};
use cogo_service_runtime::{DependencySettings, Frame, Reach, Secret, Service};
use cogo_supervision::breaker::Settings as BreakerSettings;
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
        let model = frame.settings().model();
        // vectors without a model are made in this process
        let reach = if model.is_configured() { Reach::Fleet } else { Reach::Run };
        let name = format!("embedding model {} at {}", model.embedding_model, model.origin());
        // a batch of texts takes a local model a while, and is slow only when it takes nearly as long as it may
        let breaker = BreakerSettings { slow_call: model.total_timeout.mul_f64(0.9), ..BreakerSettings::default() };
        let longest = model.total_timeout.saturating_mul(4);
        let guard = DependencySettings { breaker, longest, ..DependencySettings::default() };
        let handler = Embed {
            pool: frame.pool().clone(),
            allowed_roots: frame.allowed_roots()?,
            embedder: OnceCell::new(),
            guard: frame.dependency(&name, reach, &guard)?,
            model,
        };
        frame.worker(handler);
        Ok(())
    }
}
