//! What gateway-chat can be told, beside the settings of every process.

use std::time::Duration;

use anyhow::ensure;
use cogo_model_client::{OpenAi, OutputCapField, Prices, Secret as ModelKey, Settings as ModelSettings};
use cogo_service_runtime::{Dependencies, Dependency, DependencySettings, Reach, Secret};
use cogo_supervision::{breaker::Settings as BreakerSettings, bulkhead::Settings as BulkheadSettings};
use serde::{Deserialize, Serialize};

use crate::writing::{Guarded, Writing};

/// Dollars per million tokens times this are billionths of a dollar per token.
const NANO_USD_PER_TOKEN: f64 = 1_000.0;

/// Settings that can be changed while the process runs; the endpoint and its key are those of the start.
pub(crate) const LIVE: &[&str] = &[
    "model_chat",
    "model_input_usd_per_million",
    "model_output_usd_per_million",
    "model_max_output_tokens",
    "model_output_cap_field",
    "model_header_timeout_ms",
    "model_idle_timeout_ms",
    "model_timeout_ms",
    "chat_passages",
    "chat_passage_chars",
];

/// Settings of gateway-chat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// OpenAI-compatible endpoint, as in `http://localhost:11434/v1`; empty: answers are verbatim lines.
    pub model_base_url: String,
    /// Key of the endpoint; local servers need none.
    pub model_api_key: Secret,
    /// Model that writes answers; empty: answers are verbatim lines.
    pub model_chat: String,
    /// Model that the vectors of the index were made with; empty: passages are found by words.
    pub model_embedding: String,
    /// Length that its vectors must have.
    pub model_embedding_dimensions: Option<usize>,
    /// Price of a million prompt tokens in US dollars; a task with a money limit needs it, local models cost 0.
    pub model_input_usd_per_million: Option<f64>,
    /// Price of a million tokens of an answer in US dollars.
    pub model_output_usd_per_million: Option<f64>,
    /// Longest answer in tokens.
    pub model_max_output_tokens: u32,
    /// Under which name the endpoint takes that cap: `max_tokens` or `max_completion_tokens`.
    pub model_output_cap_field: OutputCapField,
    /// Longest wait for the endpoint's first sign in ms.
    pub model_header_timeout_ms: u64,
    /// Longest silence inside an answer in ms.
    pub model_idle_timeout_ms: u64,
    /// Longest time for one answer in ms.
    pub model_timeout_ms: u64,
    /// Passages that the model is shown at most.
    pub chat_passages: usize,
    /// Characters of passages that the model is shown at most.
    pub chat_passage_chars: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_base_url: String::new(),
            model_api_key: Secret::default(),
            model_chat: String::new(),
            model_embedding: String::new(),
            model_embedding_dimensions: None,
            model_input_usd_per_million: None,
            model_output_usd_per_million: None,
            model_max_output_tokens: 1_024,
            model_output_cap_field: OutputCapField::default(),
            // A local server loads the model into memory before it sends its headers.
            model_header_timeout_ms: 60_000,
            model_idle_timeout_ms: 30_000,
            model_timeout_ms: 120_000,
            chat_passages: 8,
            chat_passage_chars: 24_000,
        }
    }
}

/// How much the model is given and may give back.
#[derive(Debug, Clone, Copy)]
pub struct WritingLimits {
    /// Longest answer in tokens.
    pub output_tokens: u32,
    /// Passages in the prompt at most.
    pub passages: usize,
    /// Characters of passages in the prompt at most.
    pub passage_chars: usize,
}

impl Settings {
    /// How much the model is given and may give back.
    #[must_use]
    pub fn writing_limits(&self) -> WritingLimits {
        WritingLimits {
            output_tokens: self.model_max_output_tokens,
            passages: self.chat_passages,
            passage_chars: self.chat_passage_chars,
        }
    }

    /// Who writes answers by these settings.
    ///
    /// # Errors
    /// When a setting cannot be used; the text names it.
    pub(crate) fn writing(&self, dependencies: &Dependencies) -> anyhow::Result<Writing<OpenAi>> {
        let limits = self.writing_limits();
        let client = self.model()?;
        if !self.has_chat_model() {
            return Ok(Writing { model: None, limits });
        }
        let name = format!("chat model {} at {}", self.model_chat, client.origin());
        let guard = dependencies.dependency(&name, Reach::Fleet, &self.guard())?;
        Ok(Writing { model: Some(Guarded { model: OpenAi::new(client)?, guard }), limits })
    }

    /// The guard around the model of the vectors.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub(crate) fn embedding_guard(&self, dependencies: &Dependencies) -> anyhow::Result<Dependency> {
        let name = format!("embedding model {} at {}", self.model_embedding, self.model()?.origin());
        Ok(dependencies.dependency(&name, Reach::Fleet, &self.guard())?)
    }

    /// A model may take its time to write; it is slow when it takes nearly as long as it may.
    fn guard(&self) -> DependencySettings {
        let longest = Duration::from_millis(self.model_timeout_ms);
        let breaker = BreakerSettings { slow_call: longest.mul_f64(0.9), ..BreakerSettings::default() };
        let bulkhead = BulkheadSettings { concurrent: 64, ..BulkheadSettings::default() };
        // the client ends a call by its own limits, and knows what it cost until then
        DependencySettings { breaker, bulkhead, longest: longest + Duration::from_secs(5) }
    }

    /// Whether a model writes answers.
    pub(crate) fn has_chat_model(&self) -> bool {
        !self.model_base_url.is_empty() && !self.model_chat.is_empty()
    }

    /// Whether a model made the vectors.
    pub(crate) fn has_embedding_model(&self) -> bool {
        !self.model_base_url.is_empty() && !self.model_embedding.is_empty()
    }

    /// The endpoint as the client wants it.
    pub(crate) fn model(&self) -> anyhow::Result<ModelSettings> {
        ensure!(self.chat_passages > 0, "chat_passages must be at least 1");
        let key = self.model_api_key.reveal();
        Ok(ModelSettings {
            base_url: self.model_base_url.clone(),
            api_key: (!key.is_empty()).then(|| ModelKey::new(key)),
            chat_model: self.model_chat.clone(),
            embedding_model: self.model_embedding.clone(),
            embedding_dimensions: self.model_embedding_dimensions,
            header_timeout: Duration::from_millis(self.model_header_timeout_ms),
            idle_timeout: Duration::from_millis(self.model_idle_timeout_ms),
            total_timeout: Duration::from_millis(self.model_timeout_ms),
            output_cap_field: self.model_output_cap_field,
            prices: self.prices()?,
            ..ModelSettings::default()
        })
    }

    fn prices(&self) -> anyhow::Result<Option<Prices>> {
        let given = [
            ("model_input_usd_per_million", self.model_input_usd_per_million),
            ("model_output_usd_per_million", self.model_output_usd_per_million),
        ];
        for (key, price) in given {
            let usable = price.is_none_or(|usd| usd.is_finite() && usd >= 0.0);
            ensure!(usable, "{key} must be a finite number of at least 0");
        }
        match (self.model_input_usd_per_million, self.model_output_usd_per_million) {
            (None, None) => Ok(None),
            (Some(input), Some(output)) => {
                // rounded up: a budget must never be overspent by rounding
                let nano = |usd: f64| (usd * NANO_USD_PER_TOKEN).ceil() as u64;
                Ok(Some(Prices { input_nano_usd_per_token: nano(input), output_nano_usd_per_token: nano(output) }))
            }
            _ => anyhow::bail!("model_input_usd_per_million and model_output_usd_per_million belong together"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_rounded_up_and_come_in_pairs() {
        let priced = |input, output| Settings {
            model_input_usd_per_million: input,
            model_output_usd_per_million: output,
            ..Settings::default()
        };
        let prices = priced(Some(0.15), Some(0.6001)).model().unwrap().prices.unwrap();
        assert_eq!((prices.input_nano_usd_per_token, prices.output_nano_usd_per_token), (150, 601));
        assert!(priced(None, None).model().unwrap().prices.is_none());
        for (input, output) in [(Some(1.0), None), (Some(-1.0), Some(1.0)), (Some(f64::NAN), Some(1.0))] {
            assert!(priced(input, output).model().is_err(), "{input:?} {output:?}");
        }
    }

    #[test]
    fn key_is_not_shown() {
        let settings = Settings { model_api_key: Secret::new("sk-1"), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("sk-1"));
    }
}
