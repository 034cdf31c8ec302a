//! How to reach a provider and what its models cost.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Dearest believable price of one token: 1,000 US dollars per million.
/// Anything above is a price per million entered as a price per token, which would lock every caller out.
const DEAREST_NANO_USD_PER_TOKEN: u64 = 1_000_000;

/// One OpenAI-compatible provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address up to and including the version, as in `http://localhost:11434/v1`; empty: no provider is configured.
    pub base_url: String,
    /// Sent as `Authorization: Bearer`; local servers need none.
    pub api_key: Option<Secret>,
    /// Model of requests that name none; empty: each request must name one.
    pub chat_model: String,
    /// Model for embeddings; empty: none.
    pub embedding_model: String,
    /// Length that every vector must have; absent: the length of the first one.
    pub embedding_dimensions: Option<usize>,
    /// Longest wait for response headers, connecting included.
    #[serde(rename = "header_timeout_ms", with = "milliseconds")]
    pub header_timeout: Duration,
    /// Longest silence inside a reply.
    #[serde(rename = "idle_timeout_ms", with = "milliseconds")]
    pub idle_timeout: Duration,
    /// Longest duration of a call with all its retries.
    #[serde(rename = "total_timeout_ms", with = "milliseconds")]
    pub total_timeout: Duration,
    /// How many times a call is repeated that failed before its first byte.
    pub max_retries: u32,
    /// Upper bound of the first wait between retries; it doubles with each one.
    #[serde(rename = "retry_backoff_ms", with = "milliseconds")]
    pub retry_backoff: Duration,
    /// Under which name the provider takes the output cap.
    pub output_cap_field: OutputCapField,
    /// What `chat_model` costs; absent: unknown, and requests with a money limit are refused.
    pub prices: Option<Prices>,
    /// What other models of this provider cost, by name.
    pub model_prices: BTreeMap<String, Prices>,
}

impl Settings {
    /// Whether a provider is configured at all.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.base_url.is_empty()
    }

    /// What a model costs, where somebody said so.
    #[must_use]
    pub fn prices_of(&self, model: &str) -> Option<Prices> {
        if model == self.chat_model && self.prices.is_some() {
            return self.prices;
        }
        self.model_prices.get(model).copied()
    }

    /// Scheme, host and port of the endpoint, without user, password and path; what people may be shown of it.
    #[must_use]
    pub fn origin(&self) -> String {
        reqwest::Url::parse(&self.base_url)
            .map_or_else(|_| "no endpoint".to_owned(), |url| url.origin().ascii_serialization())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let all_prices = self.prices.iter().chain(self.model_prices.values());
        for prices in all_prices {
            let dearest = prices.input_nano_usd_per_token.max(prices.output_nano_usd_per_token);
            if dearest > DEAREST_NANO_USD_PER_TOKEN {
                return Err(Error::Settings {
                    key: "prices",
                    reason: format!(
                        "asks {dearest} nano-dollars per token, more than the believable {DEAREST_NANO_USD_PER_TOKEN}"
                    ),
                });
            }
        }
        let timeouts = [
            ("header_timeout_ms", self.header_timeout),
            ("idle_timeout_ms", self.idle_timeout),
            ("total_timeout_ms", self.total_timeout),
        ];
        for (key, timeout) in timeouts {
            if timeout.is_zero() {
                return Err(Error::Settings { key, reason: "must be more than 0".to_owned() });
            }
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            api_key: None,
            chat_model: String::new(),
            embedding_model: String::new(),
            embedding_dimensions: None,
            // A local server loads the model into memory before it sends its headers.
            header_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(300),
            max_retries: 2,
            retry_backoff: Duration::from_millis(250),
            output_cap_field: OutputCapField::default(),
            prices: None,
            model_prices: BTreeMap::new(),
        }
    }
}

/// Name of the request field that limits the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputCapField {
    /// What every local server and most gateways understand.
    #[default]
    MaxTokens,
    /// What OpenAI's reasoning models insist on.
    MaxCompletionTokens,
}

/// What a model costs, in billionths of a US dollar per token (the price per million tokens in dollars, times 1,000).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For each token of the prompt.
    pub input_nano_usd_per_token: u64,
    /// For each token of the answer, reasoning included.
    pub output_nano_usd_per_token: u64,
}

/// A key that is neither printed nor serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a key.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

mod milliseconds {
    //! Durations in settings are whole milliseconds and say so in their names.

    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_json_do_not_show_the_key() {
        let settings = Settings { api_key: Some(Secret::new("sk-very-secret")), ..Settings::default() };
        let shown = format!("{settings:?}{}", serde_json::to_string(&settings).unwrap());
        assert!(!shown.contains("sk-very-secret"), "{shown}");
        assert!(shown.contains("***"));
    }

    #[test]
    fn missing_settings_take_their_defaults() {
        let settings: Settings =
            serde_json::from_str(r#"{"base_url": "http://localhost:1/v1", "idle_timeout_ms": 1500}"#).unwrap();
        assert!(settings.is_configured());
        assert_eq!(settings.idle_timeout, Duration::from_millis(1500));
        assert_eq!(settings.header_timeout, Settings::default().header_timeout);
        assert!(!Settings::default().is_configured());
    }

    #[test]
    fn misspelt_setting_is_refused_by_name() {
        let error = serde_json::from_str::<Settings>(r#"{"base_ulr": "x"}"#).unwrap_err();
        assert!(error.to_string().contains("base_ulr"), "{error}");
    }

    #[test]
    fn price_per_million_entered_as_price_per_token_is_refused() {
        let settings = Settings {
            prices: Some(Prices { input_nano_usd_per_token: 150_000_000, output_nano_usd_per_token: 600 }),
            ..Settings::default()
        };
        assert!(matches!(settings.check(), Err(Error::Settings { key: "prices", .. })));
    }

    #[test]
    fn price_of_the_default_model_is_not_used_for_another() {
        let cheap = Prices { input_nano_usd_per_token: 1, output_nano_usd_per_token: 2 };
        let settings = Settings { chat_model: "small".to_owned(), prices: Some(cheap), ..Settings::default() };
        assert_eq!(settings.prices_of("small"), Some(cheap));
        assert_eq!(settings.prices_of("large"), None);
    }
}
