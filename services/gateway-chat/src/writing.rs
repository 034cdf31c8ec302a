//! The model that writes answers, as it is set at the moment, and the guard around the calls to it.

use std::sync::{Arc, PoisonError, RwLock};

use cogo_service_runtime::Dependency;

use crate::settings::WritingLimits;

/// Who writes answers, and how much.
pub struct Writing<M> {
    /// Writes answers; without one they are verbatim lines.
    pub model: Option<Guarded<M>>,
    /// How much the model is given and may give back.
    pub limits: WritingLimits,
}

/// A model that is not called while it fails.
pub struct Guarded<M> {
    /// The model.
    pub model: M,
    /// Keeps calls away from it while it fails, and bounds how many there are at once.
    pub guard: Dependency,
}

/// Who writes answers at the moment; an answer that has begun is written to its end as it was begun.
pub struct Writers<M>(RwLock<Arc<Writing<M>>>);

impl<M> Writers<M> {
    /// Begins with this.
    #[must_use]
    pub fn new(writing: Writing<M>) -> Self {
        Self(RwLock::new(Arc::new(writing)))
    }

    /// What the next answer is written with.
    #[must_use]
    pub fn now(&self) -> Arc<Writing<M>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes with this from now on.
    pub fn replace(&self, writing: Writing<M>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(writing);
    }
}
