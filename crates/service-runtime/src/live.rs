//! Settings that can be changed while the process runs: checked by all whom a change concerns, then applied by all, and
//! taken back when one of them fails or is no longer ready.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use cogo_registry_core::Configurable;
use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tracing::info;

use crate::limits::CONCURRENCY;

/// The key that every process with a worker knows.
const CONCURRENCY_KEY: &str = "concurrency";

/// How many messages the workers of a process take at once, if that was changed since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Throttle(Arc<AtomicU16>);

impl Throttle {
    /// The number that holds; `own` unless it was changed.
    pub(crate) fn most(&self, own: u16) -> u16 {
        self.changed().unwrap_or(own)
    }

    fn changed(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed)).filter(|most| *most > 0)
    }

    /// None: as at the start.
    fn set(&self, most: Option<u16>) {
        self.0.store(most.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Says why settings could not be worked with.
type Check<S> = Box<dyn Fn(&S) -> Result<(), String> + Send>;

/// What takes over the settings of a service while it runs.
pub(crate) struct LivePart<S> {
    /// Keys of the settings that it can take over.
    pub(crate) keys: &'static [&'static str],
    /// Whether it could work with these; changes nothing.
    pub(crate) check: Check<S>,
    /// Works with these from now on; after a failure with those before.
    pub(crate) apply: Box<dyn FnMut(S) -> BoxFuture<'static, Result<(), String>> + Send>,
}

/// The settings of a process as they can be changed.
pub(crate) struct LiveSettings<S> {
    /// As the process was started.
    pub(crate) settings: S,
    /// The service's own rule for its settings.
    pub(crate) check: fn(&S) -> Result<(), String>,
    pub(crate) throttle: Throttle,
    pub(crate) part: Option<LivePart<S>>,
    /// The part has settings other than those of the start.
    pub(crate) is_changed: bool,
}

/// A document that the process could work with.
struct Wanted<S> {
    concurrency: Option<u16>,
    /// None if the document has no key of the service.
    settings: Option<S>,
}

impl<S> LiveSettings<S>
where
    S: Serialize + DeserializeOwned,
{
    fn read(&self, document: &Value) -> Result<Wanted<S>, String> {
        let Value::Object(document) = document else { return Err("not an object of settings".to_owned()) };
        let keys: &[&str] = self.part.as_ref().map_or(&[], |part| part.keys);
        let mut own = Map::new();
        let mut concurrency = None;
        for (key, value) in document {
            if key == CONCURRENCY_KEY {
                concurrency = Some(number(value)?);
            } else if keys.contains(&key.as_str()) {
                own.insert(key.clone(), value.clone());
            } else {
                let known: BTreeSet<&str> = keys.iter().copied().chain([CONCURRENCY_KEY]).collect();
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                return Err(format!("{key} cannot be changed while the process runs; {known} can"));
            }
        }
        if own.is_empty() {
            return Ok(Wanted { concurrency, settings: None });
        }
        Ok(Wanted { concurrency, settings: Some(self.overlaid(own)?) })
    }

    /// The settings of the start with these over them.
    fn overlaid(&self, own: Map<String, Value>) -> Result<S, String> {
        let mut all = serde_json::to_value(&self.settings).map_err(|error| error.to_string())?;
        if let Value::Object(all) = &mut all {
            all.extend(own);
        }
        let settings: S = serde_json::from_value(all).map_err(|error| error.to_string())?;
        (self.check)(&settings)?;
        if let Some(part) = &self.part {
            (part.check)(&settings)?;
        }
        Ok(settings)
    }

    /// The settings that a document without a key of the service means.
    fn of_the_start(&self) -> Result<S, String> {
        self.overlaid(Map::new())
    }
}

impl<S> Configurable for LiveSettings<S>
where
    S: Serialize + DeserializeOwned + Send,
{
    fn check(&mut self, document: &Value) -> Result<(), String> {
        self.read(document).map(drop)
    }

    async fn apply(&mut self, document: &Value) -> Result<(), String> {
        let Wanted { concurrency, settings } = self.read(document)?;
        let is_changed = settings.is_some();
        let settings = match settings {
            None if self.is_changed => Some(self.of_the_start()?),
            other => other,
        };
        if let (Some(settings), Some(part)) = (settings, &mut self.part) {
            (part.apply)(settings).await?;
        }
        let before = (self.is_changed, self.throttle.changed());
        self.is_changed = is_changed;
        self.throttle.set(concurrency);
        // what holds at the start is no change
        if before != (is_changed, concurrency) || is_changed {
            info!(concurrency, own_settings = is_changed, "settings changed while running");
        }
        Ok(())
    }
}

fn number(value: &Value) -> Result<u16, String> {
    let number = value.as_u64().filter(|number| CONCURRENCY.contains(number));
    let number = number.and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| {
        let (least, most) = (CONCURRENCY.start(), CONCURRENCY.end());
        format!("{CONCURRENCY_KEY} is {value}, it must be {least} to {most}")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Own {
        limit: u32,
        secret: String,
    }

    fn parted(given: &Arc<Mutex<Vec<u32>>>) -> LiveSettings<Own> {
        let given = Arc::clone(given);
        let part = LivePart::<Own> {
            keys: &["limit"],
            check: Box::new(|own| if own.limit == 7 { Err("limit is 7".to_owned()) } else { Ok(()) }),
            apply: Box::new(move |own| {
                given.lock().unwrap().push(own.limit);
                assert_eq!(own.secret, "kept");
                Box::pin(std::future::ready(if own.limit == 13 { Err("out of luck".to_owned()) } else { Ok(()) }))
            }),
        };
        LiveSettings {
            settings: Own { limit: 1, secret: "kept".to_owned() },
            check: |own| if own.limit == 0 { Err("limit is 0".to_owned()) } else { Ok(()) },
            throttle: Throttle::default(),
            part: Some(part),
            is_changed: false,
        }
    }

    #[test]
    fn documents_that_cannot_work_are_refused_by_key() {
        let mut live = parted(&Arc::default());
        for (document, expected) in [
            (json!({}), None),
            (json!({"concurrency": 3, "limit": 5}), None),
            (json!({"concurrency": 0}), Some("concurrency is 0")),
            (json!({"concurrency": 5001}), Some("concurrency is 5001")),
            (json!({"concurrency": "3"}), Some("concurrency is")),
            (json!({"limit": "much"}), Some("invalid type")),
            (json!({"limit": 0}), Some("limit is 0")),
            (json!({"limit": 7}), Some("limit is 7")),
            (json!({"secret": "mine"}), Some("secret cannot be changed")),
            (json!([]), Some("not an object")),
        ] {
            let refusal = live.check(&document).err();
            match (expected, refusal) {
                (None, None) => {}
                (Some(part), Some(refusal)) if refusal.contains(part) => {}
                (_, other) => panic!("{document}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_applied_is_taken_back_to_the_start() {
        let given = Arc::default();
        let mut live = parted(&given);
        live.apply(&json!({})).await.unwrap();
        assert_eq!((live.throttle.most(8), given.lock().unwrap().len()), (8, 0), "the start needs no change");
        live.apply(&json!({"concurrency": 2, "limit": 5})).await.unwrap();
        assert_eq!(live.throttle.most(8), 2);
        assert!(live.apply(&json!({"concurrency": 4, "limit": 13})).await.is_err());
        assert_eq!(live.throttle.most(8), 2, "one part that fails changes nothing of the other");
        live.apply(&json!({})).await.unwrap();
        assert_eq!(live.throttle.most(8), 8);
        assert_eq!(*given.lock().unwrap(), [5, 13, 1]);
    }
}
