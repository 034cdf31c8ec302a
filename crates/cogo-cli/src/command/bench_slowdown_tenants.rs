//! One tenant that sends 99 % of the load, and how long the messages of the others wait beside it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cogo_bus_core::{Bus, ClaimRequest, Completion, Fence};
use cogo_contracts::{NewMessage, Tenant};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    command::{
        bench_bus_load::{LEASE, WORK, all},
        bench_bus_report::rounded,
        bench_slowdown_measure::{Empty, Figures, Measured, Pace, Place, tenant},
        bench_slowdown_pages,
    },
    failure::Failure,
};

/// Tenants beside the big one.
const OTHERS: u32 = 9;
/// One message in so many is another tenant's.
const ONE_IN: u32 = 100;
/// How long a consumer rests that found nothing.
const REST: Duration = Duration::from_millis(2);
/// Messages that do not come for so long are lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was handed out, in this order.
type HandedOut = Arc<Mutex<Vec<Handed>>>;

#[derive(Debug, Clone, Copy)]
struct Handed {
    is_of_the_big_one: bool,
    waited_ms: i64,
}

/// What a queue without tenants would show too: where the others came in the line.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Crowd {
    /// The big tenant's part of what stood ready before the drain, counted in the database.
    pub(crate) share_of_the_big_one: f64,
    pub(crate) messages_of_others: u32,
    /// Half of the messages of the big tenant waited at most so long.
    pub(crate) big_wait_p50_ms: f64,
    /// What part of all messages had been handed out when the last one of the others was: 1 in a plain queue.
    pub(crate) others_handed_out_within: f64,
}

impl Crowd {
    /// The one in which the others waited longest, of several.
    pub(crate) fn worst(crowds: Vec<Self>) -> Option<Self> {
        crowds.into_iter().max_by(|one, other| one.others_handed_out_within.total_cmp(&other.others_handed_out_within))
    }
}

/// How many messages of the others there are.
pub(crate) fn messages_of_others(pace: Pace) -> u32 {
    (pace.plan.messages / ONE_IN).max(1)
}

/// The bus with one tenant, as everywhere, and besides how long the messages of the others wait when they are alone.
pub(crate) async fn measure_alone(place: &Place, pace: Pace) -> Result<Measured, Failure> {
    let mut measured = place.measure(pace).await?;
    let others = messages_of_others(pace);
    send_of_others(place, others).await?;
    let (handed, lost) = drain(place, others).await?;
    measured.figures.set_times("others_wait", waits(&handed, false));
    measured.lost += lost;
    Ok(measured)
}

/// The big tenant's messages wait first, so that the others come to a long line. Single steps beside a line of their own
/// come before, since of what they send not all is claimed by them.
pub(crate) async fn measure_crowd(place: &Place, pace: Pace) -> Result<(Measured, Crowd), Failure> {
    let others = messages_of_others(pace);
    let of_the_big_one = pace.plan.messages.saturating_sub(others).max(1);
    let mut figures = Figures::default();
    let (line, small) = (pace.steps.max(u32::from(pace.plan.batch)), tenant("other-0")?);
    send_of_the_big_one(place, line).await?;
    figures.join(place.steps(pace.steps, &small, Empty::LeftOut).await?);
    figures.join(bench_slowdown_pages::measure_single(place, &small, Empty::LeftOut).await?);
    let (_, lost_of_steps) = drain(place, line).await?;

    let began = Instant::now();
    send_of_the_big_one(place, of_the_big_one).await?;
    send_of_others(place, others).await?;
    figures.set("enqueue_per_s", f64::from(of_the_big_one + others) / began.elapsed().as_secs_f64());
    let share: f64 = sqlx::query_scalar(
        "select (sum(cardinality(r.ids)) filter (where r.tenant = 'big'))::float8 / sum(cardinality(r.ids))
           from bus.ready r where r.lane = bus.lane($1)",
    )
    .bind(WORK.to_string())
    .fetch_one(&place.pool)
    .await?;

    let began = Instant::now();
    let (handed, lost) = drain(place, of_the_big_one + others).await?;
    figures.set("drain_per_s", f64::from(of_the_big_one + others) / began.elapsed().as_secs_f64());
    figures.set_times("others_wait", waits(&handed, false));
    let mut of_big = Figures::default();
    of_big.set_times("wait", waits(&handed, true));
    let last_of_others = handed.iter().rposition(|one| !one.is_of_the_big_one).map_or(0, |position| position + 1);
    let crowd = Crowd {
        share_of_the_big_one: share,
        messages_of_others: others,
        big_wait_p50_ms: of_big.get("wait_p50_ms").map_or(0.0, rounded),
        others_handed_out_within: rounded(as_f64(last_of_others) / as_f64(handed.len().max(1))),
    };
    Ok((Measured { figures, lost: lost + lost_of_steps }, crowd))
}

async fn send_of_the_big_one(place: &Place, messages: u32) -> Result<(), Failure> {
    for first in (0..messages).step_by(usize::from(place.plan.batch)) {
        let size = (messages - first).min(u32::from(place.plan.batch));
        send(&place.single, place, (0..size).map(|_| tenant("big"))).await?;
    }
    Ok(())
}

async fn send_of_others(place: &Place, others: u32) -> Result<(), Failure> {
    let numbers: Vec<u32> = (0..others).collect();
    for some in numbers.chunks(usize::from(place.plan.batch)) {
        send(&place.single, place, some.iter().map(|number| tenant(&format!("other-{}", number % OTHERS)))).await?;
    }
    Ok(())
}

async fn send(bus: &Bus, place: &Place, tenants: impl Iterator<Item = Result<Tenant, Failure>>) -> Result<(), Failure> {
    let mut messages = Vec::new();
    for (number, tenant) in (0..).zip(tenants) {
        messages.push(NewMessage::new(WORK, Some(tenant?), place.plan.payload(number)));
    }
    bus.enqueue_many(&messages).await?;
    Ok(())
}

/// Hands out and completes everything; answers it in order, and how many never came.
async fn drain(place: &Place, expected: u32) -> Result<(Vec<Handed>, u64), Failure> {
    let handed = HandedOut::default();
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    let mut consumers = JoinSet::new();
    for number in 0..place.plan.consumers {
        let (bus, handed, batch) = (Bus::new(place.pool.clone()), Arc::clone(&handed), place.plan.batch);
        consumers.spawn(async move {
            let holder = format!("bench/tenants-{number}#{}", std::process::id());
            let mut last = Instant::now();
            while locked(&handed).len() < expected && last.elapsed() < PATIENCE {
                if work(&bus, &holder, batch, &handed).await? {
                    last = Instant::now();
                } else {
                    tokio::time::sleep(REST).await;
                }
            }
            Ok(())
        });
    }
    all(consumers).await?;
    let handed = std::mem::take(&mut *locked(&handed));
    let lost = u64::try_from(expected.saturating_sub(handed.len())).unwrap_or(u64::MAX);
    Ok((handed, lost))
}

/// One batch; false if there was none.
async fn work(bus: &Bus, holder: &str, batch: u16, handed: &HandedOut) -> Result<bool, Failure> {
    let request = ClaimRequest { route: &WORK, holder, instance: None, max_messages: batch, lease: LEASE };
    let claimed = bus.claim(&request).await?;
    if claimed.is_empty() {
        return Ok(false);
    }
    locked(handed)
        .extend(claimed.iter().map(|one| Handed { is_of_the_big_one: one.tenant == "big", waited_ms: one.waited_ms }));
    let completion = Completion { result: Some(json!({"ok": true})), ..Completion::default() };
    let ended: Vec<(Fence, Completion)> = claimed.iter().map(|one| (one.fence(), completion.clone())).collect();
    bus.complete_many(&ended, holder).await?;
    Ok(true)
}

fn waits(handed: &[Handed], is_of_the_big_one: bool) -> Vec<f64> {
    let of = handed.iter().filter(|one| one.is_of_the_big_one == is_of_the_big_one);
    of.map(|one| f64::from(i32::try_from(one.waited_ms).unwrap_or(i32::MAX))).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts of a benchmark are far below where this loses digits.
fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
