//! How many pages of the database a statement touches: unlike its time, this does not depend on who else is busy.

use cogo_contracts::Tenant;
use serde_json::{Value, json};
use sqlx::{PgConnection, postgres::PgArguments, query::QueryScalar, types::Json};
use uuid::Uuid;

use crate::{
    command::{
        bench_bus_load::{LEASE, WORK},
        bench_bus_report::median,
        bench_slowdown_measure::{Empty, Figures, Place, gone},
    },
    failure::Failure,
};

/// Steps of one measurement; the first ones may read catalogs that others changed.
const STEPS: usize = 7;

/// An `explain` that runs its statement and answers what it did.
type Explained<'q> = QueryScalar<'q, sqlx::Postgres, Json<Value>, PgArguments>;

/// What is sent, claimed and completed at once, and whether an empty claim stands between.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    tenant: &'a Tenant,
    messages: u16,
    empty: Empty,
}

/// Single steps; what functions and triggers within a statement read counts with it.
pub(crate) async fn measure_single(place: &Place, tenant: &Tenant, empty: Empty) -> Result<Figures, Failure> {
    let names = ["send_pages", "claim_pages", "empty_claim_pages", "complete_pages"];
    measure(place, Step { tenant, messages: 1, empty }, names).await
}

/// Whole batches.
pub(crate) async fn measure_batch(place: &Place, tenant: &Tenant) -> Result<Figures, Failure> {
    let names = ["batch_send_pages", "batch_claim_pages", "batch_empty_claim_pages", "batch_complete_pages"];
    measure(place, Step { tenant, messages: place.plan.batch, empty: Empty::LeftOut }, names).await
}

async fn measure(place: &Place, step: Step<'_>, names: [&str; 4]) -> Result<Figures, Failure> {
    let mut connection = place.single.pool().acquire().await?;
    let mut of = [const { Vec::new() }; 4];
    for _ in 0..STEPS {
        let pages = go(&mut connection, place, step).await?;
        for (all, one) in of.iter_mut().zip(pages) {
            all.extend(one);
        }
    }
    let mut figures = Figures::default();
    for (name, pages) in names.into_iter().zip(of) {
        if let Some(pages) = median(pages) {
            figures.set(name, pages);
        }
    }
    Ok(figures)
}

async fn go(connection: &mut PgConnection, place: &Place, step: Step<'_>) -> Result<[Option<f64>; 4], Failure> {
    let message = |number| {
        json!({
            "service": WORK.service(), "role": WORK.role(), "shard": WORK.shard(), "tenant": step.tenant.as_str(),
            "payload": place.plan.payload(number),
        })
    };
    let messages: Value = (0..u32::from(step.messages)).map(message).collect();
    let send = sqlx::query_scalar(
        "explain (analyze, buffers, timing off, format json) select id from bus.enqueue_many($1::jsonb)",
    );
    let send = pages(connection, send.bind(messages)).await?;
    let claimed = pages(connection, claim(&place.holder, step.messages)).await?;
    let empty_claim = match step.empty {
        Empty::Claimed => Some(pages(connection, claim(&place.holder, step.messages)).await?),
        Empty::LeftOut => None,
    };
    // an explained claim does not answer what it took, the lease does
    let (ids, attempts): (Vec<Uuid>, Vec<i16>) =
        sqlx::query_as("select c.ids, c.attempts from bus.claims c where c.holder = $1")
            .bind(&place.holder)
            .fetch_optional(&mut *connection)
            .await?
            .ok_or_else(|| gone("that was just claimed"))?;
    let complete = sqlx::query_scalar(
        "explain (analyze, buffers, timing off, format json)
         select id from bus.complete_many($1, $2, $3, $4, $5, $6)",
    )
    .bind(&ids)
    .bind(attempts)
    .bind(&place.holder)
    .bind(vec![json!({"ok": true}); ids.len()])
    .bind(vec!["ok"; ids.len()])
    .bind(vec![None::<String>; ids.len()]);
    let complete = pages(connection, complete).await?;
    Ok([Some(send), Some(claimed), empty_claim, Some(complete)])
}

fn claim(holder: &str, messages: u16) -> Explained<'_> {
    let explained = sqlx::query_scalar(
        "explain (analyze, buffers, timing off, format json)
         select id, payload from bus.claim($1, $2, $3, $4, $5, $6)",
    );
    // far from where it would be cut
    let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
    explained
        .bind(WORK.service().to_owned())
        .bind(WORK.role().to_owned())
        .bind(i32::from(WORK.shard()))
        .bind(holder)
        .bind(i32::from(messages))
        .bind(lease_ms)
}

async fn pages(connection: &mut PgConnection, explained: Explained<'_>) -> Result<f64, Failure> {
    let Json(plan) = explained.fetch_one(connection).await?;
    pages_of(&plan).ok_or_else(|| Failure::failed("The database does not tell how many pages a statement reads"))
}

/// Pages that were in memory and pages that had to be read.
fn pages_of(plan: &Value) -> Option<f64> {
    let top = plan.get(0)?.get("Plan")?;
    Some(top.get("Shared Hit Blocks")?.as_f64()? + top.get("Shared Read Blocks")?.as_f64()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_of_the_whole_statement() {
        let inner = json!({"Shared Hit Blocks": 100, "Shared Read Blocks": 100});
        let plan = json!([{"Plan": {"Shared Hit Blocks": 7, "Shared Read Blocks": 2, "Plans": [inner]}}]);
        assert_eq!(pages_of(&plan), Some(9.0));
        assert_eq!(pages_of(&json!([{"Plan": {}}])), None);
    }
}
