//! An embedder whose calls go through a guard: a circuit breaker, a limit, whatever its process keeps before a provider.

use std::sync::Arc;

use crate::{EmbedError, Embedder, Embedding};

/// Makes a call, or answers why not.
type Guard = dyn for<'a> Fn(Embedding<'a>) -> Embedding<'a> + Send + Sync;

/// An embedder under guard; it answers for the rest as the embedder itself.
pub struct GuardedEmbedder {
    embedder: Arc<dyn Embedder>,
    guard: Box<Guard>,
}

impl GuardedEmbedder {
    /// Lets every call of `embedder` through `guard`.
    pub fn new(
        embedder: Arc<dyn Embedder>,
        guard: impl for<'a> Fn(Embedding<'a>) -> Embedding<'a> + Send + Sync + 'static,
    ) -> Self {
        Self { embedder, guard: Box::new(guard) }
    }
}

impl Embedder for GuardedEmbedder {
    fn identity(&self) -> &str {
        self.embedder.identity()
    }

    fn dimensions(&self) -> usize {
        self.embedder.dimensions()
    }

    fn degraded(&self) -> bool {
        self.embedder.degraded()
    }

    fn weight(&self) -> f64 {
        self.embedder.weight()
    }

    fn embed<'a>(&'a self, texts: &'a [String]) -> Embedding<'a> {
        (self.guard)(self.embedder.embed(texts))
    }
}

impl EmbedError {
    /// The provider was not asked, or did not answer in time.
    pub fn unanswered(why: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable(Box::new(why))
    }
}
