//! What is measured on the empty bus and under a circumstance alike: batches, single steps, and the pages these touch.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion};
use cogo_contracts::{NewMessage, Tenant};
use cogo_db::PoolSettings;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;

use crate::{
    command::{
        bench_bus_load::{LEASE, Load, Plan, WORK},
        bench_bus_report::{median, rounded},
        bench_slowdown_pages,
    },
    failure::Failure,
    percentile::Times,
};

/// Messages and steps that warm up a fresh database: connections, plans, the first pages of tables.
const MOST_WARM_UP_MESSAGES: u32 = 1000;
const MOST_WARM_UP_STEPS: u32 = 50;

/// How much is measured, and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) plan: Plan,
    /// Single messages that are sent, claimed and completed one by one.
    pub(crate) steps: u32,
    pub(crate) runs: u16,
}

/// Figures by name; the ending tells the unit: `_per_s` (more is better), `_ms` and `_pages` (less is better).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub(crate) fn set(&mut self, name: impl Into<String>, figure: f64) {
        self.0.insert(name.into(), figure);
    }

    /// The halves and the worst hundredth of some times in ms.
    pub(crate) fn set_times(&mut self, name: &str, times: Vec<f64>) {
        let times = Times::new(times);
        for percent in [50, 99] {
            if let Some(time) = times.percentile(percent) {
                self.set(format!("{name}_p{percent}_ms"), time);
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The median of each figure.
    pub(crate) fn median<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, figure) in all.into_iter().flat_map(|one| &one.0) {
            by_name.entry(name).or_default().push(*figure);
        }
        let of = |(name, figures): (&str, Vec<f64>)| Some((name.to_owned(), rounded(median(figures)?)));
        Self(by_name.into_iter().filter_map(of).collect())
    }

    /// How fast it is beside the empty bus, by name: 1 is as fast, 0.5 takes twice as long or reads twice as much.
    pub(crate) fn speed_beside(&self, empty: &Self) -> Self {
        let ratio = |(name, here): (&String, &f64)| {
            let there = empty.get(name)?;
            let ratio = if name.ends_with("_per_s") { here / there } else { there / here };
            ratio.is_finite().then(|| (name.clone(), ratio))
        };
        Self(self.0.iter().filter_map(ratio).collect())
    }
}

/// One measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) figures: Figures,
    /// Messages that were sent and never came back.
    pub(crate) lost: u64,
}

/// A database in which the bus is measured.
pub(crate) struct Place {
    pub(crate) pool: PgPool,
    /// A pool of one connection: single steps are to find their plans made, whichever connections the load used.
    pub(crate) single: Bus,
    pub(crate) plan: Plan,
    pub(crate) holder: String,
}

impl Place {
    /// Does not connect yet.
    pub(crate) fn open(url: &str, plan: Plan) -> Result<Self, Failure> {
        let settings = PoolSettings { max_connections: plan.connections(), ..PoolSettings::new(url, "cogo-bench") };
        let single = PoolSettings { max_connections: 1, ..settings.clone() };
        Ok(Self {
            pool: cogo_db::connect(&settings)?,
            single: Bus::new(cogo_db::connect(&single)?),
            plan,
            holder: format!("bench/steps#{}", std::process::id()),
        })
    }

    pub(crate) async fn close(self) {
        self.pool.close().await;
        self.single.pool().close().await;
    }

    /// Whatever a first time costs, so that no measurement does.
    pub(crate) async fn warm_up(&self, pace: Pace) -> Result<(), Failure> {
        let plan = Plan { messages: self.plan.messages.min(MOST_WARM_UP_MESSAGES), ..self.plan };
        let load = Load::new(self.pool.clone(), plan);
        load.enqueue().await?;
        load.drain().await?;
        self.steps(pace.steps.min(MOST_WARM_UP_STEPS), &tenant("default")?, Empty::Claimed).await?;
        Ok(())
    }

    /// Batches of one tenant, then single steps, then their pages.
    pub(crate) async fn measure(&self, pace: Pace) -> Result<Measured, Failure> {
        let load = Load::new(self.pool.clone(), self.plan);
        let mut figures = Figures::default();
        figures.set("enqueue_per_s", load.enqueue().await?);
        figures.set("drain_per_s", load.drain().await?);
        let (sent, acknowledged) = load.into_ids();
        let acknowledged: HashSet<_> = acknowledged.into_iter().collect();
        let lost = sent.iter().filter(|id| !acknowledged.contains(id)).count();
        let tenant = tenant("default")?;
        figures.join(self.steps(pace.steps, &tenant, Empty::Claimed).await?);
        figures.join(bench_slowdown_pages::measure_single(self, &tenant, Empty::Claimed).await?);
        figures.join(bench_slowdown_pages::measure_batch(self, &tenant).await?);
        Ok(Measured { figures, lost: u64::try_from(lost).unwrap_or(u64::MAX) })
    }

    /// Sends, claims and completes messages one by one.
    pub(crate) async fn steps(&self, steps: u32, tenant: &Tenant, empty: Empty) -> Result<Figures, Failure> {
        let message = NewMessage::new(WORK, Some(tenant.clone()), self.plan.payload(0));
        let (mut send, mut claim, mut empty_claim, mut complete) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..steps {
            timed(&mut send, self.single.enqueue(&message)).await?;
            let claimed = timed(&mut claim, self.claim_one()).await?.ok_or_else(|| gone("that was just sent"))?;
            if empty == Empty::Claimed && timed(&mut empty_claim, self.claim_one()).await?.is_some() {
                return Err(Failure::failed("The route of the measurement was to be empty and is not"));
            }
            let completion = Completion { result: Some(json!({"ok": true})), ..Completion::default() };
            let fence = claimed.fence();
            let done = self.single.complete(&fence, &self.holder, &completion);
            if !timed(&mut complete, done).await? {
                return Err(gone("whose lease has hours to go"));
            }
        }
        let mut figures = Figures::default();
        for (name, times) in [("send", send), ("claim", claim), ("empty_claim", empty_claim), ("complete", complete)] {
            figures.set_times(name, times);
        }
        Ok(figures)
    }

    async fn claim_one(&self) -> Result<Option<Claimed>, Failure> {
        let request =
            ClaimRequest { route: &WORK, holder: &self.holder, instance: None, max_messages: 1, lease: LEASE };
        Ok(self.single.claim(&request).await?.pop())
    }
}

/// Whether a step looks once more after its claim, and finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Empty {
    Claimed,
    /// Others wait on the route, so that no claim is empty.
    LeftOut,
}

/// Measures the empty bus and the one under a circumstance in turn, each first every other time.
pub(crate) async fn pairs(empty: &Place, under: &Place, pace: Pace) -> Result<Vec<[Measured; 2]>, Failure> {
    let mut pairs = Vec::new();
    for run in 0..pace.runs {
        pairs.push(pair(empty, under, pace, run % 2 == 0).await?);
    }
    Ok(pairs)
}

/// One measurement of each, the empty one first in the answer, whichever came first in time.
pub(crate) async fn pair(
    empty: &Place,
    under: &Place,
    pace: Pace,
    is_empty_first: bool,
) -> Result<[Measured; 2], Failure> {
    if is_empty_first {
        let first = empty.measure(pace).await?;
        return Ok([first, under.measure(pace).await?]);
    }
    let first = under.measure(pace).await?;
    Ok([empty.measure(pace).await?, first])
}

pub(crate) fn tenant(name: &str) -> Result<Tenant, Failure> {
    name.parse().map_err(|error| Failure::failed("Name the tenant").because(&error))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) fn gone(which: &str) -> Failure {
    Failure::failed(format!("A message {which} could not be had"))
}

async fn timed<T, E: Into<Failure>>(
    times: &mut Vec<f64>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    let done = work.await.map_err(Into::into)?;
    times.push(milliseconds(began.elapsed()));
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(of: [(&str, f64); 2]) -> Figures {
        Figures(of.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect())
    }

    #[test]
    fn half_as_many_a_second_and_twice_the_time_are_both_half_the_speed() {
        let empty = figures([("drain_per_s", 1000.0), ("claim_p50_ms", 1.0)]);
        let under = figures([("drain_per_s", 500.0), ("claim_p50_ms", 2.0)]);
        assert_eq!(under.speed_beside(&empty), figures([("drain_per_s", 0.5), ("claim_p50_ms", 0.5)]));
    }

    #[test]
    fn figures_that_one_side_lacks_have_no_ratio_and_medians_are_by_name() {
        let empty = figures([("drain_per_s", 1000.0), ("claim_p50_ms", 1.0)]);
        let under = figures([("drain_per_s", 1000.0), ("other_ms", 2.0)]);
        assert_eq!(under.speed_beside(&empty).names().collect::<Vec<_>>(), ["drain_per_s"]);
        let median = Figures::median([&empty, &under, &under]);
        assert_eq!((median.get("claim_p50_ms"), median.get("other_ms")), (Some(1.0), Some(2.0)));
    }
}
