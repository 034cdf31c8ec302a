//! The searcher of the process, which starts without its embedding model if that is away and takes it up later.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use cogo_model_client::Settings as ModelSettings;
use cogo_rag_core::{Embedder, GuardedEmbedder, HashEmbedder, Searcher, embedder_of};
use cogo_service_runtime::Dependency;
use sqlx::PgPool;
use tracing::{info, warn};

use crate::guarded::guarded;

/// Longest wait for the embedding model at the start and at each later try.
const CONNECT: Duration = Duration::from_secs(5);

/// Hands out the searcher.
pub struct Search {
    pool: PgPool,
    /// Endpoint of the vectors, if a model made them, and the guard around the calls to it.
    model: Option<(ModelSettings, Dependency)>,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    searcher: Arc<Searcher>,
    is_complete: bool,
}

impl Search {
    /// Searches by words, smoothed by local vectors that need no model.
    #[must_use]
    pub fn without_model(pool: PgPool) -> Self {
        let embedder: Arc<dyn Embedder> = Arc::new(HashEmbedder::default());
        let current = Current { searcher: Arc::new(Searcher::new(pool.clone(), Some(embedder))), is_complete: true };
        Self { pool, model: None, current: RwLock::new(current) }
    }

    /// Searches by words until the model of the vectors has been reached.
    #[must_use]
    pub fn with_model(pool: PgPool, model: ModelSettings, guard: Dependency) -> Self {
        let current = Current { searcher: Arc::new(Searcher::new(pool.clone(), None)), is_complete: false };
        Self { pool, model: Some((model, guard)), current: RwLock::new(current) }
    }

    /// Whether the model of the vectors was set but not reached yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.current().is_complete
    }

    /// Tries to reach the model of the vectors; answers whether the search is complete now.
    pub(crate) async fn connect(&self) -> bool {
        let Some((model, guard)) = self.model.clone().filter(|_| self.is_waiting()) else { return true };
        let reaching = guarded(&guard, embedder_of(model));
        let embedder: Arc<dyn Embedder> = match tokio::time::timeout(CONNECT, reaching).await {
            Ok(Ok(embedder)) => Arc::from(embedder),
            Ok(Err(error)) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                warn!(error, "embedding model not reached, searching by words");
                return false;
            }
            Err(_) => {
                warn!("embedding model did not answer in time, searching by words");
                return false;
            }
        };
        info!(embedder = embedder.identity(), "embedding model reached");
        let embedder = GuardedEmbedder::new(embedder, move |call| {
            let guard = guard.clone();
            Box::pin(async move { guarded(&guard, call).await })
        });
        let embedder: Arc<dyn Embedder> = Arc::new(embedder);
        let searcher = Arc::new(Searcher::new(self.pool.clone(), Some(embedder)));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { searcher, is_complete: true };
        true
    }

    pub(crate) fn searcher(&self) -> Arc<Searcher> {
        self.current().searcher
    }

    /// Why passages are compared by words only.
    pub(crate) fn why_not_semantic(&self) -> &'static str {
        match self.model {
            None => "no embedding model is configured, so passages were found by their words",
            Some(_) => "the embedding model did not answer, so passages were found by their words",
        }
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
