//! A process's side of configuration: it checks what is proposed, applies what holds, and says how that went.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::advance,
    registry::{Error, Registry},
    standing::{Heard, Member, Membership, Standing},
};

/// A part of a process that can be configured while it runs.
pub trait Configurable: Send {
    /// Whether it could work with this document. Changes nothing.
    ///
    /// # Errors
    /// Why not, for people.
    fn check(&mut self, document: &Value) -> Result<(), String>;

    /// Works with this document from now on; also called with the earlier one when a rollout is taken back.
    ///
    /// # Errors
    /// Why it could not; then it must still work with the document before.
    fn apply(&mut self, document: &Value) -> impl Future<Output = Result<(), String>> + Send;
}

/// Keeps one part of a process configured.
#[derive(Debug)]
pub struct ConfigWatcher<C> {
    pool: PgPool,
    standing: watch::Receiver<Standing>,
    heard: watch::Receiver<Option<Heard>>,
    part: C,
    /// How often a rollout that is under way is looked at.
    pace: Duration,
    applied: Option<Value>,
    /// The run, rollout and answer that were given last, which need not be given again.
    answered: Option<(uuid::Uuid, i64, Answer)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Valid,
    Invalid,
    Applied,
    Failed,
}

#[derive(Debug, sqlx::FromRow)]
struct ConfigRow {
    config_version: i64,
    document: Value,
    rollout: Option<i64>,
    rollout_state: Option<String>,
    proposed: Option<Value>,
}

impl<C: Configurable> ConfigWatcher<C> {
    /// A watcher for the process of this member; `pace` is how often it looks while a rollout is under way. When none
    /// is, the answers to beats tell of the next.
    #[must_use]
    pub fn new(registry: &Registry, member: &Member, part: C, pace: Duration) -> Self {
        Self {
            pool: registry.pool().clone(),
            standing: member.standing(),
            heard: member.heard(),
            part,
            pace,
            applied: None,
            answered: None,
        }
    }

    /// Watches until the token is cancelled, or the member is gone; answers the part with what it was given last.
    pub async fn run(mut self, token: CancellationToken) -> C {
        let mut seen = None;
        loop {
            let membership = self.standing.borrow_and_update().membership().cloned();
            let under_way = match membership {
                None => false,
                Some(membership) => match self.look(&membership).await {
                    Ok((version, under_way)) => {
                        seen = Some(version);
                        under_way
                    }
                    Err(error) => {
                        warn!(error = %error, "look for configuration");
                        true
                    }
                },
            };
            tokio::select! {
                () = token.cancelled() => return self.part,
                changed = self.standing.changed() => if changed.is_err() { return self.part },
                () = newer(&mut self.heard, seen) => {}
                () = tokio::time::sleep(self.pace), if under_way => {}
            }
        }
    }

    /// Does what there is to do; answers the version of the configuration and whether a rollout is under way.
    async fn look(&mut self, membership: &Membership) -> Result<(i64, bool), Error> {
        let row: Option<ConfigRow> = sqlx::query_as(
            "
            select w.config_version, w.document, w.rollout, w.rollout_state, w.proposed
              from registry.watch_config($1, $2) as w
            ",
        )
        .bind(membership.instance_id)
        .bind(membership.epoch)
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::Database)?;
        let Some(row) = row else {
            // the run has ended; the heartbeat will tell
            return Ok((0, true));
        };
        let outcome = self.hold(&row.document).await;
        match (row.rollout, row.rollout_state.as_deref()) {
            (Some(version), Some("validating")) => {
                let checked = self.part.check(row.proposed.as_ref().unwrap_or(&row.document));
                let answer = if checked.is_ok() { Answer::Valid } else { Answer::Invalid };
                self.answer(membership, version, answer, checked.err()).await?;
            }
            (Some(version), _) => {
                let answer = if outcome.is_ok() { Answer::Applied } else { Answer::Failed };
                self.answer(membership, version, answer, outcome.err()).await?;
            }
            (None, _) => {}
        }
        if row.rollout.is_some() {
            advance(&self.pool).await?;
        }
        Ok((row.config_version, row.rollout.is_some()))
    }

    /// Applies the document that holds, unless that is done.
    async fn hold(&mut self, document: &Value) -> Result<(), String> {
        if self.applied.as_ref() == Some(document) {
            return Ok(());
        }
        let applied = self.part.apply(document).await;
        match &applied {
            Ok(()) => {
                info!("configuration applied");
                self.applied = Some(document.clone());
            }
            Err(reason) => warn!(reason, "configuration could not be applied"),
        }
        applied
    }

    async fn answer(
        &mut self,
        membership: &Membership,
        version: i64,
        answer: Answer,
        detail: Option<String>,
    ) -> Result<(), Error> {
        let given = Some((membership.instance_id, version, answer));
        if self.answered == given {
            return Ok(());
        }
        sqlx::query("select registry.acknowledge_config($1, $2, $3, $4, $5)")
            .bind(membership.instance_id)
            .bind(membership.epoch)
            .bind(version)
            .bind(answer.as_str())
            .bind(detail)
            .execute(&self.pool)
            .await
            .map_err(Error::Database)?;
        self.answered = given;
        Ok(())
    }
}

impl Answer {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Applied => "applied",
            Self::Failed => "failed",
        }
    }
}

/// Waits until a beat tells of another version of the configuration than the one that was seen.
async fn newer(heard: &mut watch::Receiver<Option<Heard>>, seen: Option<i64>) {
    let another = |heard: &Option<Heard>| {
        heard.and_then(|heard| heard.config_version).is_some_and(|version| seen.is_none_or(|seen| version > seen))
    };
    if heard.wait_for(another).await.is_err() {
        std::future::pending::<()>().await;
    }
}
