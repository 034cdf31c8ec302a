//! The brain: holds policy and snapshot, and takes decisions with them.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use cogo_contracts::DecideRequest;
use cogo_registry_core::View;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{decision::Decision, plan::Refusal, policy::Policy, scorers::kg::Coverage, sense::Snapshot, store};

/// Why no decision was taken.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The request cannot be served as it is.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database did not answer; later it may.
    #[error("Nothing could be decided")]
    Unavailable(#[source] anyhow::Error),
}

/// What all parts of the process share.
#[derive(Debug)]
pub struct Brain {
    pool: PgPool,
    policy: Policy,
    view: Option<View>,
    snapshot: RwLock<Arc<Snapshot>>,
}

impl Brain {
    /// A brain that knows nothing yet; it looks at the first [`Brain::refresh`], or at the first request.
    #[must_use]
    pub fn new(pool: PgPool, policy: Policy) -> Self {
        Self { pool, policy, view: None, snapshot: RwLock::default() }
    }

    /// Looks for living agents in this copy of the registry, and in the database only while the copy is too old.
    #[must_use]
    pub fn looking_at(mut self, view: View) -> Self {
        self.view = Some(view);
        self
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at targets, agents and statistics again.
    ///
    /// # Errors
    /// When the database does not answer; the old snapshot stays.
    pub async fn refresh(&self) -> anyhow::Result<()> {
        let mut connection = self.pool.acquire().await.context("load a snapshot")?;
        self.refresh_by(&mut connection).await.map(drop)
    }

    /// The same by a connection of the caller's; answers whether there is anything to learn from, if that was seen.
    pub(crate) async fn refresh_by(&self, connection: &mut PgConnection) -> anyhow::Result<Option<bool>> {
        let seen = store::load_snapshot(connection, self.view.as_ref()).await.context("load a snapshot")?;
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(seen.snapshot);
        Ok(seen.news)
    }

    /// Takes a decision and changes nothing.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn decide(&self, tenant: &str, request: &DecideRequest) -> Result<Decision, DecideError> {
        self.know_intent(tenant, &request.intent).await?;
        let snapshot = self.snapshot();
        let coverage = self.coverage(&snapshot, tenant, request).await?;
        Ok(Decision::take(Uuid::now_v7(), &snapshot, tenant, request, coverage, &self.policy)?)
    }

    /// A target may have been added a moment ago, so an unknown intent is worth a fresh look before it is refused.
    async fn know_intent(&self, tenant: &str, intent: &str) -> Result<(), DecideError> {
        if self.snapshot().candidates(tenant, intent).next().is_none() {
            self.refresh().await.map_err(DecideError::Unavailable)?;
        }
        Ok(())
    }

    /// Asked for each decision rather than kept, since it is another answer for each tenant and collection.
    async fn coverage(
        &self,
        snapshot: &Snapshot,
        tenant: &str,
        request: &DecideRequest,
    ) -> Result<Coverage, DecideError> {
        if !snapshot.candidates(tenant, &request.intent).any(|target| target.uses_knowledge) {
            return Ok(Coverage::Unknown);
        }
        let collection = request.payload.get("collection").and_then(Value::as_str);
        if collection.is_some_and(|name| name.contains('\0')) {
            return Err(Refusal::Nul.into());
        }
        store::coverage(&self.pool, tenant, collection)
            .await
            .context("look for indexed collections")
            .map_err(DecideError::Unavailable)
    }
}
