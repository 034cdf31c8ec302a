//! The intents that somebody serves, remembered for a few seconds.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cogo_contracts::Tenant;
use cogo_service_runtime::ApiError;
use sqlx::PgPool;

use crate::{database::Database, problems};

/// A target that was switched off is offered at most this much longer.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Intents of the enabled targets.
pub(crate) struct Intents {
    pool: PgPool,
    database: Database,
    remembered: Mutex<Option<(Instant, Targets)>>,
}

/// Each intent with the tenant that its target is reserved for, if it is.
type Targets = BTreeSet<(String, Option<String>)>;

impl Intents {
    pub(crate) fn new(pool: PgPool, database: Database) -> Self {
        Self { pool, database, remembered: Mutex::default() }
    }

    /// Lets an intent pass that the tenant may use; one that is not remembered is looked up anew first.
    pub(crate) async fn expect(&self, intent: &str, tenant: &Tenant) -> Result<(), ApiError> {
        if self.remembers(intent, tenant) {
            return Ok(());
        }
        let targets = self.database.answered(async { Ok(self.read().await?) }).await?;
        let known = known(&targets, tenant);
        *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), targets));
        if known.contains(intent) { Ok(()) } else { Err(problems::unknown_intent(intent, &known)) }
    }

    fn remembers(&self, intent: &str, tenant: &Tenant) -> bool {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((read_at, targets)) = remembered.as_ref() else { return false };
        let holds = |reserved: Option<&str>| targets.contains(&(intent.to_owned(), reserved.map(str::to_owned)));
        read_at.elapsed() < REMEMBERED && (holds(None) || holds(Some(tenant.as_str())))
    }

    async fn read(&self) -> Result<Targets, sqlx::Error> {
        let rows: Vec<(String, Option<String>)> =
            sqlx::query_as("select distinct intent, tenant from public.orch_targets where enabled")
                .fetch_all(&self.pool)
                .await?;
        Ok(rows.into_iter().collect())
    }
}

/// What this tenant may use; intents reserved for others stay unheard of.
fn known(targets: &Targets, tenant: &Tenant) -> BTreeSet<String> {
    let open = targets.iter().filter(|(_, reserved)| reserved.as_deref().is_none_or(|one| one == tenant.as_str()));
    open.map(|(intent, _)| intent.clone()).collect()
}
