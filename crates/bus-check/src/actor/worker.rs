//! Claims messages and does to each what it asks for: complete, fail, hand back, extend, try to cheat.

use std::time::{Duration, Instant};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, Error, Failure, Fence, Wake, WakeUps};
use cogo_contracts::NewMessage;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::broadcast, task::JoinSet};

use super::{Actor, Point, ROUTE, batch};
use crate::{
    history::{Answer, Outcome},
    recorder::{Broken, completing, enqueue, enqueued, still},
};

/// What a worker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// How long it owns what it claims.
    pub lease_ms: u64,
    /// Most messages of one claim.
    pub batch: u16,
    /// How long it sleeps when nothing is there, unless it is woken.
    pub poll_ms: u64,
    /// Whether it listens to notifications.
    pub listens: bool,
    /// What it does with a claim.
    pub handling: Handling,
}

/// How a worker treats the messages of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handling {
    /// Each as it asks for.
    OneByOne,
    /// All at once: one piece of work, then the failures in one call and the completions in another.
    Batch {
        /// How long that work takes.
        work_ms: u64,
    },
}

/// Tries of a call that brought no answer; then the lease is left to pass.
pub(super) const TRIES: usize = 3;
pub(super) const BETWEEN_TRIES: Duration = Duration::from_millis(20);
/// Work on a slow message; short, so that a claim of many ends within its lease.
const SLOW_WORK: Duration = Duration::from_millis(3);
/// How often what is not ended yet is extended.
const BEATS_PER_LEASE: u32 = 3;

pub(super) async fn run(actor: &mut Actor, settings: &WorkerSettings) {
    let wakeups = WakeUps::default();
    let mut wakes = wakeups.subscribe();
    let mut listening = JoinSet::new();
    if settings.listens {
        listening.spawn(wakeups.run(actor.pool.clone(), actor.stop.clone()));
    }
    let lease = Duration::from_millis(settings.lease_ms);
    let holder = actor.name.clone();
    let request = ClaimRequest { route: &ROUTE, holder: &holder, instance: None, max_messages: settings.batch, lease };
    while !actor.is_stopped() {
        let call = actor.bus.claim(&request);
        let claimed = actor.fault.during(Point::Claiming, &mut actor.chance, call).await.unwrap_or_default();
        if claimed.is_empty() {
            sleep(actor, settings, &mut wakes).await;
            continue;
        }
        actor.fault.at(Point::Claimed);
        if actor.chance.percent(2) {
            // its lease has just lapsed, and perhaps nobody has taken anything back yet
            let late = Duration::from_millis(10 + actor.chance.below(60));
            actor.pause(lease + late).await;
        }
        match settings.handling {
            Handling::OneByOne => work(actor, claimed, lease).await,
            Handling::Batch { work_ms } => batch::work(actor, &claimed, Duration::from_millis(work_ms)).await,
        }
    }
}

async fn sleep(actor: &Actor, settings: &WorkerSettings, wakes: &mut broadcast::Receiver<Wake>) {
    let poll = Duration::from_millis(settings.poll_ms);
    tokio::select! {
        () = actor.pause(poll) => {}
        // lagging means that something happened
        _ = wakes.recv(), if settings.listens => {}
    }
}

async fn work(actor: &mut Actor, claimed: Vec<Claimed>, lease: Duration) {
    let mut plain = Vec::new();
    let mut slow = Vec::new();
    let mut left: Vec<Fence> = claimed.iter().map(Claimed::fence).collect();
    let mut renewed = Instant::now();
    for message in claimed {
        if actor.is_stopped() {
            return;
        }
        // of a claim of many some wait long on a busy machine
        if renewed.elapsed() > lease / BEATS_PER_LEASE {
            renewed = Instant::now();
            let call = actor.bus.extend(&left, &actor.name, lease);
            let _ = actor.fault.during(Point::Extending, &mut actor.chance, call).await;
        }
        let act = message.payload.get("act").and_then(serde_json::Value::as_str).unwrap_or("plain").to_owned();
        match act.as_str() {
            "follow" => complete(actor, &message, 2).await,
            "flaky" if message.attempt == 1 => fail(actor, &message, true).await,
            "poison" => fail(actor, &message, true).await,
            "reject" => fail(actor, &message, false).await,
            "hand_back" if message.attempt == 1 => release(actor, &message).await,
            "greedy" => cheat(actor, &message).await,
            "transaction" => complete_in_transaction(actor, &message).await,
            "slow" => {
                slow.push(message);
                continue;
            }
            _ => {
                plain.push((message.fence(), completion(actor, &message, 0)));
                continue;
            }
        }
        left.retain(|fence| fence.id != message.id);
    }
    // heartbeats of what takes long come while the rest is completed, each in a call of its own
    let mut heartbeats = JoinSet::new();
    for message in &slow {
        let (bus, holder, fences) = (actor.bus.clone(), actor.name.clone(), [message.fence()]);
        heartbeats.spawn(async move { bus.extend(&fences, &holder, lease).await });
    }
    if plain.len() > 1 && actor.chance.percent(5) {
        cheat_with_many(actor, &plain).await;
    }
    complete_all(actor, &plain).await;
    while heartbeats.join_next().await.is_some() {}
    for message in slow {
        // whoever is told to end leaves the rest to others
        if actor.is_stopped() {
            return;
        }
        extend_and_complete(actor, &message, lease).await;
    }
}

pub(super) async fn complete_all(actor: &mut Actor, ended: &[(Fence, Completion)]) {
    if ended.is_empty() {
        return;
    }
    let holder = actor.name.clone();
    for _ in 0..TRIES {
        let call = actor.bus.complete_many(ended, &holder);
        if actor.fault.during(Point::Completing, &mut actor.chance, call).await.is_ok() {
            break;
        }
        actor.pause(BETWEEN_TRIES).await;
    }
    actor.fault.at(Point::Completed);
}

/// Of which message, by whom and in which attempt a result is stands in it, so that the checker can tell.
pub(super) fn completion(actor: &Actor, message: &Claimed, follow_ups: usize) -> Completion {
    let usage = json!({"input_tokens": 7, "output_tokens": 3});
    let child = |number: usize| {
        let mut child = NewMessage::new(ROUTE, None, json!({"act": "plain", "number": number}));
        child.max_attempts = Some(3);
        child
    };
    Completion {
        result: Some(json!({"of": message.id, "by": actor.name, "attempt": message.attempt, "usage": usage})),
        snippet: Some(format!("{} {}", actor.name, message.attempt)),
        result_url: None,
        follow_ups: (0..follow_ups).map(child).collect(),
    }
}

async fn complete(actor: &mut Actor, message: &Claimed, follow_ups: usize) {
    let completion = completion(actor, message, follow_ups);
    let holder = actor.name.clone();
    let fence = message.fence();
    for _ in 0..TRIES {
        let call = actor.bus.complete(&fence, &holder, &completion);
        if actor.fault.during(Point::Completing, &mut actor.chance, call).await.is_ok() {
            break;
        }
        actor.pause(BETWEEN_TRIES).await;
    }
    actor.fault.at(Point::Completed);
}

async fn fail(actor: &mut Actor, message: &Claimed, retriable: bool) {
    let wait = Duration::from_millis(actor.chance.below(60));
    let failure = Failure { reason: "on purpose".to_owned(), retriable, retry_after: Some(wait) };
    let fence = message.fence();
    let call = actor.bus.fail(&fence, &actor.name, &failure);
    // without an answer the lease passes
    let _ = actor.fault.during(Point::Failing, &mut actor.chance, call).await;
}

async fn release(actor: &mut Actor, message: &Claimed) {
    let fences = [message.fence()];
    let call = actor.bus.release(&fences, &actor.name);
    let _ = actor.fault.during(Point::Releasing, &mut actor.chance, call).await;
}

async fn extend_and_complete(actor: &mut Actor, message: &Claimed, lease: Duration) {
    let fences = [message.fence()];
    let call = actor.bus.extend(&fences, &actor.name, lease);
    let kept = actor.fault.during(Point::Extending, &mut actor.chance, call).await;
    if kept.is_ok_and(|kept| kept.is_empty()) {
        return;
    }
    actor.pause(SLOW_WORK).await;
    complete(actor, message, 0).await;
}

/// What must be refused of many at once as it is of one.
async fn cheat_with_many(actor: &Actor, ended: &[(Fence, Completion)]) {
    let fences: Vec<Fence> = ended.iter().map(|(fence, _)| fence.clone()).collect();
    let later: Vec<_> =
        ended.iter().map(|(fence, end)| (Fence { attempt: fence.attempt + 1, ..fence.clone() }, end.clone())).collect();
    let lie = Failure { reason: "a lie".to_owned(), retriable: false, retry_after: None };
    let lies: Vec<_> = fences.iter().map(|fence| (fence.clone(), lie.clone())).collect();
    let _ = actor.bus.complete_many(&later, &actor.name).await;
    let _ = actor.bus.complete_many(ended, "somebody-else").await;
    let _ = actor.bus.fail_many(&lies, "somebody-else").await;
    let _ = actor.bus.release(&fences, "somebody-else").await;
    let _ = actor.bus.extend(&fences, "somebody-else", Duration::from_secs(60)).await;
}

/// Everything that must be refused, then the real completion twice.
async fn cheat(actor: &mut Actor, message: &Claimed) {
    let own = message.fence();
    let completion = completion(actor, message, 0);
    let others = Fence { attempt: own.attempt + 1, ..own.clone() };
    let earlier = Fence { attempt: own.attempt - 1, ..own.clone() };
    let _ = actor.bus.complete(&others, &actor.name, &completion).await;
    let _ = actor.bus.complete_many(&[(earlier.clone(), completion.clone())], &actor.name).await;
    let _ = actor.bus.complete(&own, "somebody-else", &completion).await;
    let failure = Failure { reason: "a lie".to_owned(), retriable: false, retry_after: None };
    let _ = actor.bus.fail(&own, "somebody-else", &failure).await;
    let _ = actor.bus.release(&[earlier], &actor.name).await;
    let twice = [(own.clone(), completion.clone()), (own.clone(), completion.clone())];
    let _ = actor.bus.complete_many(&twice, &actor.name).await;
    let _ = actor.bus.complete(&own, &actor.name, &completion).await;
    let _ = actor.bus.extend(&[own], &actor.name, Duration::from_secs(60)).await;
}

/// Completes and sends in one transaction of its own: both or none.
async fn complete_in_transaction(actor: &mut Actor, message: &Claimed) {
    let completion = completion(actor, message, 0);
    let fence = message.fence();
    let tenant = cogo_contracts::Tenant::new(&message.tenant).ok();
    let sent = [NewMessage { max_attempts: Some(3), ..NewMessage::new(ROUTE, tenant, json!({"act": "plain"})) }];
    let journal = actor.bus.journal().clone();
    let completing = journal.invoked(completing(&actor.name, [(&fence, &completion)]));
    let sending = journal.invoked(enqueue(&sent));
    let gives_up = actor.chance.percent(20);
    let before_commit = async {
        let mut transaction = actor.pool.begin().await.map_err(Error::from)?;
        let recorded = Bus::complete_in(&mut transaction, &fence, &actor.name, &completion).await?;
        let accepted = if recorded { Bus::enqueue_many_in(&mut transaction, &sent).await? } else { Vec::new() };
        Ok::<_, Broken>((transaction, recorded, accepted))
    };
    let patience = actor.bus.patience();
    let before_commit = tokio::time::timeout(patience, before_commit).await.unwrap_or(Err(Broken::GivenUp));
    let (completed, enqueued) = match before_commit {
        Err(error) => {
            let outcome = Outcome::Failed(format!("never committed: {error}"));
            (outcome.clone(), outcome)
        }
        Ok((transaction, recorded, _)) if gives_up || !recorded => {
            drop(transaction);
            let refused = Outcome::Failed("rolled back".to_owned());
            (if recorded { refused.clone() } else { Outcome::Ok(Answer::Still(Vec::new())) }, refused)
        }
        Ok((transaction, _, accepted)) => {
            actor.fault.at(Point::InTransaction);
            match tokio::time::timeout(patience, transaction.commit()).await {
                Ok(Ok(())) => (Outcome::Ok(still(fence.id, true)), Outcome::Ok(enqueued(&accepted))),
                _ => {
                    let outcome = Outcome::Unknown("the commit brought no answer".to_owned());
                    (outcome.clone(), outcome)
                }
            }
        }
    };
    journal.returned(completing, completed);
    journal.returned(sending, enqueued);
}
