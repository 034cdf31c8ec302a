//! Sends messages of every kind: keyed, grouped, delayed, expiring, with ids of a wrong clock, alone, in batches, in transactions.

use std::{collections::VecDeque, time::Duration};

use cogo_bus_core::{Bus, Error};
use cogo_contracts::{NewMessage, Tenant};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::{Builder, Uuid};

use super::{Actor, Point, ROUTE};
use crate::{
    chance::Chance,
    history::Outcome,
    recorder::{Broken, enqueue, enqueued},
};

/// What a producer is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProducerSettings {
    /// How many messages it sends, at least.
    pub messages: u64,
    /// Most of them in one call.
    pub batch: u64,
    /// Whether every message is plain: no groups, delays, deadlines, refusals, cancels.
    pub plain: bool,
    /// Pause between two calls.
    pub pause_ms: u64,
}

/// Under these several producers send the same.
const SHARED_KEYS: u64 = 40;
const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// At least so many are sent alike, and fewer than twice as many.
const ALIKE: u64 = 64;
/// Only who has more than this left to send sends so many at once.
const MANY_LEFT: u64 = 500;
/// After this many tries a call of unknown outcome is left as it is.
const TRIES: usize = 200;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

pub(super) async fn run(actor: &mut Actor, settings: &ProducerSettings) {
    let mut sent = 0;
    let mut known = Known::default();
    while sent < settings.messages && !actor.is_stopped() {
        let left = settings.messages - sent;
        let messages: Vec<NewMessage> = if left > MANY_LEFT && actor.chance.percent(3) {
            alike(actor, sent)
        } else {
            let count = 1 + actor.chance.below(settings.batch.min(left));
            (0..count).map(|number| message(actor, settings, &known, sent + number)).collect()
        };
        sent += messages.len() as u64;
        let accepted = if actor.chance.percent(10) {
            send_in_transaction(actor, &messages).await;
            Vec::new()
        } else {
            send(actor, &messages).await
        };
        known.add(&messages, &accepted);
        actor.fault.at(Point::Enqueued);
        if let Some(victim) = accepted.first()
            && !settings.plain
            && actor.chance.percent(3)
        {
            // lost or not, it is in the journal
            let _ = actor.bus.cancel(*victim).await;
        }
        if settings.pause_ms > 0 {
            actor.pause(Duration::from_millis(settings.pause_ms)).await;
        }
    }
}

/// Sends until it is known what became of it, as far as the keys allow asking again.
async fn send(actor: &mut Actor, messages: &[NewMessage]) -> Vec<Uuid> {
    let may_ask_again = messages.iter().all(|message| message.idempotency_key.is_some());
    for _ in 0..TRIES {
        let call = actor.bus.enqueue_many(messages);
        match actor.fault.during(Point::Enqueueing, &mut actor.chance, call).await {
            Ok(sent) => return sent.into_iter().map(|sent| sent.id).collect(),
            Err(broken) if broken.is_unknown() && !may_ask_again => return Vec::new(),
            // what it awaits may have been removed
            Err(Broken::Bus(Error::Refused { .. } | Error::NotFound { .. })) => return Vec::new(),
            Err(_) if actor.is_stopped() => return Vec::new(),
            Err(_) => actor.pause(BETWEEN_TRIES).await,
        }
    }
    Vec::new()
}

/// Sends within a transaction, which is sometimes rolled back.
async fn send_in_transaction(actor: &mut Actor, messages: &[NewMessage]) {
    let number = actor.bus.journal().invoked(enqueue(messages));
    let gives_up = actor.chance.percent(30);
    let before_commit = async {
        let mut transaction = actor.pool.begin().await.map_err(Error::from)?;
        let sent = Bus::enqueue_many_in(&mut transaction, messages).await?;
        Ok::<_, Error>((transaction, sent))
    };
    let patience = actor.bus.patience();
    let outcome = match tokio::time::timeout(patience, before_commit).await {
        Ok(Ok((transaction, _))) if gives_up => {
            drop(transaction);
            Outcome::Failed("rolled back".to_owned())
        }
        Ok(Ok((transaction, sent))) => {
            actor.fault.at(Point::InTransaction);
            match tokio::time::timeout(patience, transaction.commit()).await {
                Ok(Ok(())) => Outcome::Ok(enqueued(&sent)),
                _ => Outcome::Unknown("the commit brought no answer".to_owned()),
            }
        }
        _ => Outcome::Failed("never committed".to_owned()),
    };
    actor.bus.journal().returned(number, outcome);
}

/// Plain messages of one tenant, so many that they pass the triggers of the table by; some have ids of a wrong clock, which
/// may be of another day than the others.
fn alike(actor: &mut Actor, first: u64) -> Vec<NewMessage> {
    let now_ms = actor.bus.journal().client_ms();
    let name = actor.name.clone();
    let chance = &mut actor.chance;
    let tenant = tenant(chance);
    let count = ALIKE + chance.below(ALIKE);
    (first..first + count)
        .map(|number| {
            let mut message = NewMessage::new(ROUTE, Some(tenant.clone()), json!({"act": "plain"}));
            message.id = chance.percent(5).then(|| id_by(now_ms, chance));
            describe(&mut message, &name, number);
            message
        })
        .collect()
}

fn tenant(chance: &mut Chance) -> Tenant {
    Tenant::new(TENANTS[usize::try_from(chance.below(3)).unwrap_or(0)]).expect("the names are well formed")
}

fn message(actor: &mut Actor, settings: &ProducerSettings, known: &Known, number: u64) -> NewMessage {
    let now_ms = actor.bus.journal().client_ms();
    let (name, label) = (&actor.name, &actor.label);
    let chance = &mut actor.chance;
    let tenant = tenant(chance);
    let act = if settings.plain { "plain" } else { act(chance) };
    let mut message = NewMessage::new(ROUTE, Some(tenant), json!({"act": act}));
    // few, so that a message that is failed on purpose ends within a check
    message.max_attempts = Some(3);
    match chance.below(10) {
        0..5 => message.idempotency_key = Some(format!("{name}-{number}")),
        5 if !settings.plain => message.idempotency_key = Some(format!("shared{label}-{}", chance.below(SHARED_KEYS))),
        6 | 7 => message.id = Some(id_by(now_ms, chance)),
        _ => {}
    }
    if chance.percent(30) {
        message.payload["__assignment"] = json!({"budget": {"maxTokens": 1_000}});
    }
    if !settings.plain {
        match chance.below(20) {
            0 => message.delay_ms = Some(chance.below(300)),
            1 => message.ttl_ms = Some(20 + chance.below(400)),
            2 | 3 => message.group_key = Some(format!("group-{}", chance.below(4))),
            4 => message.priority = Some(10),
            5 | 6 => message.awaits = known.of(message.tenant.as_ref(), chance),
            _ => {}
        }
    }
    describe(&mut message, name, number);
    message
}

/// Says in the payload what the message is, so that the checker can hold its row, and what is handed out, against that.
fn describe(message: &mut NewMessage, name: &str, number: u64) {
    let said = json!({
        "tenant": message.tenant, "key": message.idempotency_key, "group": message.group_key,
        "priority": message.priority, "attempts": message.max_attempts, "awaits": message.awaits,
        "ttl": message.ttl_ms, "delay": message.delay_ms,
    });
    message.payload["mark"] = json!(format!("{name}/{number}"));
    message.payload["said"] = said;
}

/// Messages that were acknowledged last, for others to wait for.
#[derive(Default)]
struct Known {
    latest: VecDeque<(Option<Tenant>, Uuid)>,
}

impl Known {
    const MOST: usize = 60;

    fn add(&mut self, messages: &[NewMessage], accepted: &[Uuid]) {
        let tenants = messages.iter().map(|message| message.tenant.clone());
        self.latest.extend(tenants.zip(accepted.iter().copied()));
        let over = self.latest.len().saturating_sub(Self::MOST);
        self.latest.drain(..over);
    }

    /// Up to three of the same tenant.
    fn of(&self, tenant: Option<&Tenant>, chance: &mut Chance) -> Vec<Uuid> {
        let own = self.latest.iter().filter(|(whose, _)| whose.as_ref() == tenant).map(|(_, id)| *id);
        own.filter(|_| chance.percent(20)).take(3).collect()
    }
}

fn act(chance: &mut Chance) -> &'static str {
    match chance.below(100) {
        0..60 => "plain",
        60..66 => "follow",
        66..73 => "flaky",
        73..76 => "reject",
        76..78 => "poison",
        78..84 => "hand_back",
        84..92 => "slow",
        92..96 => "greedy",
        _ => "transaction",
    }
}

/// A time-ordered id by a clock that may be wrong.
fn id_by(milliseconds: i64, chance: &mut Chance) -> Uuid {
    Builder::from_unix_timestamp_millis(milliseconds.unsigned_abs(), &chance.bytes()).into_uuid()
}
