//! What happened in the supervision tree of `cogo up`, which serves no metrics itself, counted from its audit.

use std::{collections::BTreeMap, sync::Arc};

use cogo_bus_core::{TreeCount, tree_events_after};
use sqlx::PgPool;
use tokio::sync::Mutex;

/// Counts by event and process, which do not shrink when old rows of the audit are removed; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    /// Rows of the audit up to this one are counted for good.
    mark: i64,
    settled: Counts,
}

/// How often, by event (`spawn`, `crash`, …) and process of the list.
type Counts = BTreeMap<(String, String), i64>;

impl Tree {
    /// The counts now.
    pub(crate) async fn counts(&self, pool: &PgPool) -> Result<Counts, cogo_bus_core::Error> {
        // held while the database is asked: two scrapes at once must not count the same rows twice
        let mut counted = self.0.lock().await;
        let news = tree_events_after(pool, counted.mark).await?;
        Ok(counted.add(news))
    }
}

impl Counted {
    fn add(&mut self, news: TreeCount) -> Counts {
        self.mark = news.mark;
        let mut recent = Counts::new();
        for events in news.events {
            let event = events.kind.strip_prefix("tree_").unwrap_or(&events.kind);
            let key = (event.to_owned(), process_of(&events.agent).to_owned());
            *self.settled.entry(key.clone()).or_default() += events.settled;
            *recent.entry(key).or_default() += events.recent;
        }
        let mut all = self.settled.clone();
        for (key, events) in recent {
            *all.entry(key).or_default() += events;
        }
        all
    }
}

/// The process of the list that a path in the tree belongs to: its last part that is no slot. Labels must have few values.
fn process_of(path: &str) -> &str {
    let is_slot = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    path.rsplit('/').find(|part| !is_slot(part)).filter(|part| !part.is_empty()).unwrap_or("fleet")
}

#[cfg(test)]
mod tests {
    use cogo_bus_core::TreeEvents;

    use super::*;

    #[test]
    fn slots_of_a_process_are_counted_together_and_recent_rows_once() {
        let events = |kind: &str, agent: &str, settled, recent| TreeEvents {
            kind: kind.to_owned(),
            agent: agent.to_owned(),
            settled,
            recent,
        };
        let mut counted = Counted::default();
        let news = [events("tree_crash", "rag/rag-embed/0", 2, 1), events("tree_crash", "rag/rag-embed/1", 0, 4)];
        let first = counted.add(TreeCount { mark: 9, events: news.into() });
        let key = ("crash".to_owned(), "rag-embed".to_owned());
        assert_eq!((first[&key], counted.mark), (7, 9));
        // what was recent has settled since
        let second =
            counted.add(TreeCount { mark: 14, events: [events("tree_crash", "rag/rag-embed/1", 5, 0)].into() });
        assert_eq!(second[&key], 7);
        assert_eq!(counted.add(TreeCount { mark: 14, events: Vec::new() })[&key], 7);
        assert_eq!((process_of("fleet"), process_of(""), process_of("rag")), ("fleet", "fleet", "rag"));
    }
}
