//! Sense: the snapshot of what is known, from which decisions are taken without asking the database.

use chrono::{DateTime, Utc};
use cogo_contracts::Route;

use crate::update::Stats;

/// A target of an intent with everything known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its key in `orch_targets`.
    pub id: i64,
    /// The intent that it serves.
    pub intent: String,
    /// The only tenant that it serves; none for all.
    pub tenant: Option<String>,
    /// Where work for it goes.
    pub route: Route,
    /// The model that it must use.
    pub model: Option<String>,
    /// Time in ms from sending to result that counts as prompt.
    pub slo_ms: f64,
    /// Most time in ms that work on it gets.
    pub ttl_ms: u64,
    /// Most US dollars for one message.
    pub max_cost_usd: Option<f64>,
    /// Most tokens for one message.
    pub max_tokens: Option<u64>,
    /// Price where workers report tokens but no money.
    pub price_usd_per_1k_tokens: Option<f64>,
    /// Expected cost before anything was observed.
    pub cost_prior_usd: f64,
    /// Whether its answers rest on what the tenant has indexed.
    pub uses_knowledge: bool,
    /// Whether the registry has an active agent for its route.
    pub live: bool,
    /// What was observed of it.
    pub stats: Stats,
    /// Time of the snapshot, by the database clock.
    pub seen_at: DateTime<Utc>,
}

/// All enabled targets, by id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// The targets.
    pub targets: Vec<Target>,
}

impl Snapshot {
    /// Targets of an intent that serve the tenant.
    pub fn candidates<'s>(&'s self, tenant: &'s str, intent: &'s str) -> impl Iterator<Item = &'s Target> {
        self.targets.iter().filter(move |target| target.intent == intent && serves(target, tenant))
    }

    /// Intents known to a tenant, sorted.
    #[must_use]
    pub fn intents_of(&self, tenant: &str) -> Vec<&str> {
        let mut intents: Vec<&str> =
            self.targets.iter().filter(|target| serves(target, tenant)).map(|target| target.intent.as_str()).collect();
        intents.sort_unstable();
        intents.dedup();
        intents
    }

    /// Decisions so far on an intent, over all tenants; behind by at most the age of the snapshot.
    #[must_use]
    pub fn decisions_on(&self, intent: &str) -> u64 {
        let of_intent = self.targets.iter().filter(|target| target.intent == intent);
        of_intent.map(|target| target.stats.decisions.max(0).unsigned_abs()).sum()
    }
}

fn serves(target: &Target, tenant: &str) -> bool {
    target.tenant.as_deref().is_none_or(|only| only == tenant)
}
