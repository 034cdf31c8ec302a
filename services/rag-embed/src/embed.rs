//! The handler of rag/embed.

use std::{convert::Infallible, sync::Arc};

use anyhow::Context;
use cogo_contracts::{EmbedReply, EmbedRequest, Route, Usage, routes};
use cogo_model_client::Settings as ModelSettings;
use cogo_rag_core::{
    EmbedError, Embedder, Error, GuardedEmbedder, WalkLimits, embed_files, embed_pending, embedder_of, index_files,
};
use cogo_service_runtime::{AllowedRoots, Claim, Dependency, Handler, HandlerError, Unanswered};
use sqlx::PgPool;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::guarded::guarded;

/// Chunks that get their vectors in one go; between two goes the claim's token is heeded.
const CHUNKS_PER_GO: u32 = 256;

/// Indexes files and embeds what waits for a vector.
pub struct Embed {
    /// Where the index stands.
    pub pool: PgPool,
    /// Directories below which files may be read.
    pub allowed_roots: AllowedRoots,
    /// Makes the vectors; reached when the first message needs it, since files are searchable without vectors.
    pub embedder: OnceCell<Box<dyn Embedder>>,
    /// Which embedder.
    pub model: ModelSettings,
    /// Keeps calls away from it while it fails.
    pub guard: Dependency,
}

impl Embed {
    async fn embedder(&self) -> Result<&dyn Embedder, HandlerError> {
        let reach = async || {
            let embedder = guarded(&self.guard, embedder_of(self.model.clone())).await?;
            if embedder.degraded() {
                warn!(
                    embedder = embedder.identity(),
                    "no embedding model configured: vectors carry words, not meaning"
                );
            } else {
                info!(embedder = embedder.identity(), "embedding model reached");
            }
            let guard = self.guard.clone();
            let embedder = GuardedEmbedder::new(Arc::from(embedder), move |call| {
                let guard = guard.clone();
                Box::pin(async move { guarded(&guard, call).await })
            });
            Ok(Box::new(embedder) as Box<dyn Embedder>)
        };
        let embedder = self.embedder.get_or_try_init(reach).await.map_err(|error: EmbedError| failure(error.into()))?;
        Ok(&**embedder)
    }
}

impl Handler for Embed {
    const ROUTE: Route = routes::EMBED;
    type Request = EmbedRequest;
    type Reply = EmbedReply;

    async fn handle(&self, request: EmbedRequest, claim: &Claim) -> Result<EmbedReply, HandlerError> {
        let root = self.allowed_roots.resolve(&request.root).map_err(HandlerError::reject)?;
        let (tenant, collection) = (claim.tenant(), request.collection.as_str());
        let (mut files, mut chunks) = (0, 0);
        if !request.paths.is_empty() {
            let limits = WalkLimits::default();
            let report = index_files(&self.pool, tenant, collection, &root, &request.paths, limits).await;
            let report = report.context("index the files")?;
            for error in &report.errors {
                warn!(path = error.path, error = error.reason, "file passed over");
            }
            (files, chunks) = (report.indexed as u64, report.chunks as u64);
        }
        let embedder = self.embedder().await?;
        let mut reply = EmbedReply {
            files,
            chunks,
            embedded: 0,
            embedder: embedder.identity().to_owned(),
            degraded: embedder.degraded(),
            usage: Usage::default(),
        };
        loop {
            // Messages of one collection are worked on at once, so each embeds what its own files have. The one without
            // files is sent when nothing changed, and finishes what others left behind.
            let round = if request.paths.is_empty() {
                embed_pending(&self.pool, tenant, collection, embedder, CHUNKS_PER_GO).await
            } else {
                embed_files(&self.pool, tenant, collection, embedder, &request.paths, CHUNKS_PER_GO).await
            };
            let round = round.map_err(failure)?;
            reply.embedded += round.computed as u64;
            if !round.more {
                break;
            }
        }
        claim.summarize(format!("{} files, {} chunks, {} vectors", reply.files, reply.chunks, reply.embedded));
        Ok(reply)
    }
}

fn failure(error: Error) -> HandlerError {
    match error {
        Error::Embed(EmbedError::Refused(_) | EmbedError::Shape { .. }) => HandlerError::reject(error),
        Error::Embed(EmbedError::Unavailable(source)) => {
            let after = source.downcast_ref::<Unanswered<Infallible>>().and_then(Unanswered::retry_after);
            let error = Error::Embed(EmbedError::Unavailable(source));
            match after {
                // what was not even asked costs no attempt
                Some(after) => HandlerError::deferred(after, error),
                None => HandlerError::retry(error),
            }
        }
        other => HandlerError::retry(other),
    }
}
