//! The living agents at one version of the registry, in memory; also what replaying the log gives.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cogo_contracts::AgentState;
use uuid::Uuid;

use crate::{change::Change, entry::Entry, query::Query};

/// The living agents at one version.
///
/// A copy shares all it can with its original: making one for a change of state copies a list of pointers, and only
/// joining or leaving copies the index.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: i64,
    places: Vec<Option<Arc<Entry>>>,
    free: Vec<u32>,
    index: Arc<Index>,
}

/// Where the agents stand that answer to a word.
#[derive(Debug, Clone, Default)]
struct Index {
    by_run: HashMap<Uuid, u32>,
    by_slot: HashMap<Arc<str>, u32>,
    /// One for each [`Kind`].
    by_word: [HashMap<Arc<str>, Arc<Vec<u32>>>; 4],
}

/// What a word by which agents are found says of them.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Capability,
    Tag,
    Domain,
    Name,
}

/// The log does not go on where the snapshot ends; only reading the whole registry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Change {found} does not follow version {version}")]
pub struct Gap {
    version: i64,
    found: i64,
}

impl Snapshot {
    /// The agents of a whole reading at a version.
    #[must_use]
    pub fn new(version: i64, agents: impl IntoIterator<Item = Entry>) -> Self {
        let mut snapshot = Self { version, ..Self::default() };
        for entry in agents {
            snapshot.insert(Arc::new(entry));
        }
        snapshot
    }

    /// Replays a log from its very beginning; holes that forgetting the ended left are passed over.
    #[must_use]
    pub fn replay<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Self {
        let mut snapshot = Self::default();
        for change in changes {
            snapshot.take_in(change);
        }
        snapshot
    }

    /// Goes on by the changes that follow this version.
    ///
    /// # Errors
    /// When one is missing; the snapshot is then at the last change before the gap.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), Gap> {
        for change in changes {
            if change.version != self.version + 1 {
                return Err(Gap { version: self.version, found: change.version });
            }
            self.take_in(change);
        }
        Ok(())
    }

    /// Version of the registry that this is.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version
    }

    /// How many agents are living.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.by_run.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every living agent, in no particular order.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.places.iter().flatten()
    }

    /// The living run of this id.
    #[must_use]
    pub fn run(&self, instance_id: Uuid) -> Option<&Arc<Entry>> {
        self.at(*self.index.by_run.get(&instance_id)?)
    }

    /// The living owner of a slot, given as `name/slot`.
    #[must_use]
    pub fn owner(&self, instance: &str) -> Option<&Arc<Entry>> {
        self.at(*self.index.by_slot.get(instance)?)
    }

    /// The active agents that fit, in no particular order.
    pub fn matching<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.fitting(query).take(query.most())
    }

    /// As [`matching`](Self::matching), however many.
    pub(crate) fn fitting<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Arc<Entry>> {
        let candidates = self.candidates(query);
        let found = (0..candidates.len()).filter_map(move |number| self.at(candidates.get(number)?));
        found.filter(|entry| query.fits(entry))
    }

    /// Whether an agent may be given work, and the one whose process it lives in as well.
    #[must_use]
    pub fn is_healthy(&self, entry: &Entry) -> bool {
        let carried = entry.carrier.map(|carrier| self.run(carrier));
        entry.is_healthy() && carried.is_none_or(|carrier| carrier.is_some_and(|carrier| carrier.is_healthy()))
    }

    /// The shortest list in which all that fit are found.
    pub(crate) fn candidates(&self, query: &Query) -> Candidates<'_> {
        let words = [(Kind::Domain, query.domain.as_deref()), (Kind::Name, query.name.as_deref())];
        let words = words.into_iter().filter_map(|(kind, text)| Some((kind, text?)));
        let capabilities = query.capabilities.iter().map(|word| (Kind::Capability, word.as_str()));
        let tags = query.tags.iter().map(|tag| (Kind::Tag, tag.as_str()));
        let lists = words.chain(capabilities).chain(tags).map(|(kind, text)| self.index.listed(kind, text));
        lists.min_by_key(|list| list.len()).map_or(Candidates::All(self.places.len()), Candidates::Listed)
    }

    pub(crate) fn at(&self, place: u32) -> Option<&Arc<Entry>> {
        self.places.get(place as usize)?.as_ref()
    }

    fn take_in(&mut self, change: &Change) {
        self.version = change.version;
        if let Some(joined) = &change.joined {
            self.insert(Arc::new(Entry::clone(joined)));
        } else if change.to == AgentState::Terminated {
            self.remove(change.instance_id);
        } else if let Some(place) = self.index.by_run.get(&change.instance_id)
            && let Some(entry) = self.places[*place as usize].as_mut()
        {
            // readers may hold the old one; its load is shared with the new one
            Arc::make_mut(entry).state = change.to;
        }
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("a fleet has fewer than four thousand million agents")
        });
        let index = Arc::make_mut(&mut self.index);
        index.by_run.insert(entry.id.instance_id, place);
        index.by_slot.insert(entry.id.instance().into(), place);
        for (kind, word) in words_of(&entry) {
            let list = Arc::make_mut(index.by_word[kind as usize].entry(word.into()).or_default());
            // an agent may say the same word twice
            if list.last() != Some(&place) {
                list.push(place);
            }
        }
        self.places[place as usize] = Some(entry);
    }

    fn remove(&mut self, instance_id: Uuid) {
        let index = Arc::make_mut(&mut self.index);
        let Some(place) = index.by_run.remove(&instance_id) else {
            return;
        };
        let Some(entry) = self.places[place as usize].take() else {
            return;
        };
        index.by_slot.remove(entry.id.instance().as_str());
        for (kind, word) in words_of(&entry) {
            let lists = &mut index.by_word[kind as usize];
            if let Some(list) = lists.get_mut(word) {
                Arc::make_mut(list).retain(|listed| *listed != place);
                if list.is_empty() {
                    lists.remove(word);
                }
            }
        }
        self.free.push(place);
    }
}

impl PartialEq for Snapshot {
    /// The same version and the same agents, wherever they stand in memory.
    fn eq(&self, other: &Self) -> bool {
        let sorted = |snapshot: &Self| -> BTreeMap<Uuid, Arc<Entry>> {
            snapshot.agents().map(|entry| (entry.id.instance_id, Arc::clone(entry))).collect()
        };
        self.version == other.version && sorted(self) == sorted(other)
    }
}

impl Index {
    fn listed(&self, kind: Kind, text: &str) -> &[u32] {
        self.by_word[kind as usize].get(text).map_or(&[], |list| list.as_slice())
    }
}

/// Places at which to look.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Candidates<'a> {
    Listed(&'a [u32]),
    All(usize),
}

impl Candidates<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Listed(places) => places.len(),
            Self::All(count) => count,
        }
    }

    pub(crate) fn get(self, number: usize) -> Option<u32> {
        match self {
            Self::Listed(places) => places.get(number).copied(),
            Self::All(count) => u32::try_from(number).ok().filter(|_| number < count),
        }
    }
}

fn words_of(entry: &Entry) -> impl Iterator<Item = (Kind, &str)> {
    let capabilities = entry.capabilities.iter().map(|word| (Kind::Capability, word.as_str()));
    let tags = entry.tags.iter().map(|word| (Kind::Tag, word.as_str()));
    let own = [(Kind::Domain, entry.id.domain.as_str()), (Kind::Name, entry.id.name.as_str())];
    capabilities.chain(tags).chain(own)
}
