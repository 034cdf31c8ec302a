//! What the agents say of themselves at their own `/metrics`: read when someone asks, each behind a circuit of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use cogo_model_client::http_client;
use cogo_registry_core::Agent;
use cogo_service_runtime::{Dependencies, Dependency, DependencySettings, Reach};
use cogo_supervision::breaker::Settings as BreakerSettings;
use futures_util::{StreamExt, future::BoxFuture, stream};
use tracing::debug;

/// An agent on this machine answers at once; a scrape of all of them must not take longer than one of them.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Agents that are asked at once.
const AT_ONCE: usize = 64;
/// Far more than the figures of a process.
const MOST_BYTES: usize = 1 << 20;
/// Agents beyond this level are somebody else's, and so are their addresses.
const OWN_LEVELS: i16 = 2;
/// The names of this process must not ask each other in a circle.
const SELF: &str = "metrics-server";

/// What an agent says of itself; absent what it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Figures {
    /// Processor time.
    pub(crate) cpu_seconds: Option<f64>,
    /// Bytes received by its network namespace.
    pub(crate) received: Option<f64>,
    /// Bytes transmitted by its network namespace.
    pub(crate) transmitted: Option<f64>,
    /// Messages that it has claimed.
    pub(crate) messages: Option<f64>,
    /// Attempts that it has ended, and how long they took altogether.
    pub(crate) attempts: Option<f64>,
    pub(crate) worked_seconds: Option<f64>,
}

/// Asks agents. Cheap to clone; clones know the same circuits.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    client: reqwest::Client,
    dependencies: Dependencies,
    /// By `name/slot`.
    circuits: Arc<Mutex<HashMap<String, Dependency>>>,
}

impl Agents {
    pub(crate) fn new(dependencies: Dependencies) -> anyhow::Result<Self> {
        let client = http_client("http://127.0.0.1", ANSWERS_WITHIN).context("build the HTTP client")?;
        Ok(Self { client, dependencies, circuits: Arc::default() })
    }

    /// What each of these says of itself, in their order; none of one that does not answer, or that is this process.
    pub(crate) async fn figures(&self, agents: &[Agent], own: &str) -> Vec<Option<Figures>> {
        let own = read(own);
        let circuits = self.circuits(agents);
        let asked = agents.iter().zip(circuits).map(|(agent, circuit)| -> BoxFuture<'_, Option<Figures>> {
            match circuit {
                _ if agent.id.name == SELF => Box::pin(std::future::ready(Some(own))),
                Some((url, circuit)) => Box::pin(self.ask(agent, url, circuit)),
                None => Box::pin(std::future::ready(None)),
            }
        });
        let asked: Vec<_> = asked.collect();
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    async fn ask(&self, agent: &Agent, url: String, circuit: Dependency) -> Option<Figures> {
        let answered = circuit.call("", None, self.scrape(&url), |_error| true).await;
        let text = match answered {
            Ok(text) => text,
            Err(unanswered) => {
                debug!(agent = agent.id.instance(), error = ?unanswered, "agent does not tell its figures");
                return None;
            }
        };
        // an address of this machine may belong to another process than on the agent's own
        is_of(&text, &agent.id.instance()).then(|| read(&text))
    }

    async fn scrape(&self, url: &str) -> anyhow::Result<String> {
        let response = self.client.get(format!("{url}/metrics")).send().await?.error_for_status()?;
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk?);
            anyhow::ensure!(body.len() <= MOST_BYTES, "more than {MOST_BYTES} bytes of figures");
        }
        Ok(String::from_utf8(body)?)
    }

    /// Where each agent is asked and under which guard; agents that are gone are forgotten.
    fn circuits(&self, agents: &[Agent]) -> Vec<Option<(String, Dependency)>> {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut living = HashMap::new();
        let found = agents.iter().map(|agent| {
            let endpoint = agent.endpoints.iter().find(|endpoint| endpoint.protocol == "http")?;
            if agent.level > OWN_LEVELS || agent.id.name == SELF {
                return None;
            }
            let name = agent.id.instance();
            let circuit = match circuits.remove(&name).or_else(|| living.get(&name).cloned()) {
                Some(circuit) => circuit,
                None => self.circuit(&name)?,
            };
            living.insert(name, circuit.clone());
            Some((endpoint.url.trim_end_matches('/').to_owned(), circuit))
        });
        let found = found.collect();
        *circuits = living;
        found
    }

    fn circuit(&self, name: &str) -> Option<Dependency> {
        let breaker = BreakerSettings { consecutive_failures: 2, ..BreakerSettings::default() };
        let settings = DependencySettings { breaker, longest: ANSWERS_WITHIN, ..DependencySettings::default() };
        self.dependencies.dependency(&format!("figures of {name}"), Reach::Run, &settings).ok()
    }
}

/// Whether figures are those of a run of this slot.
fn is_of(text: &str, instance: &str) -> bool {
    let told = format!("service_instance_id=\"{instance}#");
    text.lines().any(|line| line.starts_with("target_info{") && line.contains(&told))
}

/// Adds up what is told in the text format of Prometheus, over all labels but those that are asked for.
fn read(text: &str) -> Figures {
    let mut figures = Figures::default();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let figure = match name {
            "process_cpu_seconds_total" => &mut figures.cpu_seconds,
            "process_network_io_bytes_total" if labels.contains("=\"receive\"") => &mut figures.received,
            "process_network_io_bytes_total" => &mut figures.transmitted,
            "messaging_client_consumed_messages_total" => &mut figures.messages,
            "messaging_process_duration_seconds_count" => &mut figures.attempts,
            "messaging_process_duration_seconds_sum" => &mut figures.worked_seconds,
            _ => continue,
        };
        *figure = Some(figure.unwrap_or(0.0) + value);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE process_cpu_seconds_total counter\n\
        process_cpu_seconds_total 1.5\n\
        process_network_io_bytes_total{network_io_direction=\"receive\"} 100\n\
        process_network_io_bytes_total{network_io_direction=\"transmit\"} 20\n\
        messaging_process_duration_seconds_bucket{le=\"1\"} 7\n\
        messaging_process_duration_seconds_sum{outcome=\"done\"} 0.5\n\
        messaging_process_duration_seconds_sum{outcome=\"retry\"} 0.25\n\
        messaging_process_duration_seconds_count{outcome=\"done\"} 2\n\
        target_info{service_instance_id=\"rag-embed/1#0199\",service_name=\"cogo-rag-embed\"} 1\n";

    #[test]
    fn figures_are_added_up_over_labels() {
        let expected = Figures {
            cpu_seconds: Some(1.5),
            received: Some(100.0),
            transmitted: Some(20.0),
            messages: None,
            attempts: Some(2.0),
            worked_seconds: Some(0.75),
        };
        assert_eq!(read(TEXT), expected);
        assert_eq!(read("nonsense\n\u{0} x"), Figures::default());
    }

    #[test]
    fn figures_of_another_process_are_told_apart() {
        assert!(is_of(TEXT, "rag-embed/1"));
        for other in ["rag-embed/11", "rag-embed/0", "embed/1"] {
            assert!(!is_of(TEXT, other), "{other}");
        }
    }
}
