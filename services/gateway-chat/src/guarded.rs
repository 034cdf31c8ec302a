//! An embedding model that is not called while it fails; questions are compared by their words meanwhile.

use std::sync::Arc;

use cogo_model_client::Error as ModelError;
use cogo_rag_core::{EmbedError, Embedder, Embedding};
use cogo_service_runtime::{Dependency, Unanswered};

/// The tenants of questions are not told apart here: a vector takes a moment.
const ANYBODY: &str = "";

/// An embedder under guard.
pub(crate) struct GuardedEmbedder {
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) guard: Dependency,
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
        Box::pin(guarded(&self.guard, self.embedder.embed(texts)))
    }
}

/// A call to the provider of vectors, unless it fails anyway.
pub(crate) async fn guarded<T>(
    guard: &Dependency,
    call: impl Future<Output = Result<T, EmbedError>>,
) -> Result<T, EmbedError> {
    let answered = guard.call(ANYBODY, None, call, tells_against).await;
    answered.map_err(|unanswered| {
        unanswered.failure().unwrap_or_else(|unanswered: Unanswered<_>| EmbedError::Unavailable(Box::new(unanswered)))
    })
}

fn tells_against(error: &EmbedError) -> bool {
    match error {
        EmbedError::Unavailable(_) | EmbedError::Shape { .. } => true,
        EmbedError::Refused(source) => {
            source.downcast_ref::<ModelError>().is_some_and(ModelError::tells_against_provider)
        }
    }
}
