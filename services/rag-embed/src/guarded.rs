//! An embedding model that is not called while it fails; files are indexed by their words meanwhile.

use cogo_rag_core::EmbedError;
use cogo_service_runtime::Dependency;

/// The tenants of texts are not told apart here: the messages are shared out among them before.
const ANYBODY: &str = "";

/// A call to the provider of vectors, unless it fails anyway.
pub(crate) async fn guarded<T>(
    guard: &Dependency,
    call: impl Future<Output = Result<T, EmbedError>>,
) -> Result<T, EmbedError> {
    let answered = guard.call(ANYBODY, None, call, EmbedError::tells_against_provider).await;
    answered.map_err(|unanswered| unanswered.failure_or(EmbedError::unanswered))
}
