//! What is asked of an agent: capability, tags, range of versions, place.

use cogo_contracts::{AgentState, Environment};
use semver::VersionReq;

use crate::entry::Entry;

/// What an agent must be like; what is not asked for does not matter. The default fits every active agent.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub(crate) capabilities: Vec<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) domain: Option<String>,
    pub(crate) name: Option<String>,
    version: Option<VersionReq>,
    region: Option<String>,
    host: Option<String>,
    environment: Option<Environment>,
    level: Option<i16>,
    limit: Option<usize>,
}

impl Query {
    /// Agents that can do this.
    #[must_use]
    pub fn capability(capability: &str) -> Self {
        Self { capabilities: vec![capability.to_owned()], ..Self::default() }
    }

    /// Agents of this domain.
    #[must_use]
    pub fn domain(domain: &str) -> Self {
        Self { domain: Some(domain.to_owned()), ..Self::default() }
    }

    /// The replicas of this process.
    #[must_use]
    pub fn name(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::default() }
    }

    /// That can do this as well.
    #[must_use]
    pub fn and_capability(mut self, capability: &str) -> Self {
        self.capabilities.push(capability.to_owned());
        self
    }

    /// With this tag as well.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.push(tag.to_owned());
        self
    }

    /// With a version in this range.
    #[must_use]
    pub fn version(mut self, range: VersionReq) -> Self {
        self.version = Some(range);
        self
    }

    /// In this region.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        self.region = Some(region.to_owned());
        self
    }

    /// On this host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// On this kind of machine.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// On this level: 1 strategic, 2 operational, 3 external.
    #[must_use]
    pub fn level(mut self, level: i16) -> Self {
        self.level = Some(level);
        self
    }

    /// No more than this many.
    #[must_use]
    pub fn limit(mut self, most: usize) -> Self {
        self.limit = Some(most);
        self
    }

    pub(crate) fn most(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    /// Whether an agent is active and all that is asked for.
    #[must_use]
    pub fn fits(&self, entry: &Entry) -> bool {
        let location = entry.location.as_ref();
        entry.state == AgentState::Active
            && self.capabilities.iter().all(|capability| entry.capabilities.contains(capability))
            && self.tags.iter().all(|tag| entry.tags.contains(tag))
            && asked(self.domain.as_ref(), |domain| entry.id.domain == *domain)
            && asked(self.name.as_ref(), |name| entry.id.name == *name)
            && asked(self.version.as_ref(), |range| range.matches(&entry.id.version))
            && asked(self.region.as_ref(), |region| {
                location.is_some_and(|location| location.region.as_ref() == Some(region))
            })
            && asked(self.host.as_ref(), |host| location.is_some_and(|location| location.host == *host))
            && asked(self.environment.as_ref(), |kind| location.is_some_and(|place| place.environment == *kind))
            && asked(self.level.as_ref(), |level| entry.level == *level)
    }
}

/// True when nothing is asked for, else what the check says.
fn asked<T>(wish: Option<&T>, check: impl FnOnce(&T) -> bool) -> bool {
    wish.is_none_or(check)
}
