//! One operation on the real bus and on the one in memory, and what both must answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cogo_bus_core::{Bus, ClaimRequest, Completion, Failure, Fence, Settled};
use cogo_contracts::{NewMessage, Tenant};
use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::json;
use uuid::Uuid;

use crate::{
    model::{
        changes::MAX_ATTEMPTS,
        claiming::Taken,
        observing::{compare, hold_delays, hold_looks, none_is_misplaced, nothing_is_left},
        operations::{FLOOD, HOLDERS, Operation, Retry, Sent, TENANTS},
        state::{Claim, Message, Model, Planned},
    },
    support::{ROUTE, message},
};

const HOUR: Duration = Duration::from_secs(3600);
/// Shorter than the delay of [`Retry::InAnHour`], and longer than any case runs.
const TIME_TO_LIVE_MS: u64 = 1_800_000;
const LEASE: Duration = HOUR;
const EXTENDED_LEASE: Duration = Duration::from_secs(10 * 3600);

pub(super) type Checked = Result<(), TestCaseError>;

/// Both buses.
pub(super) struct Run<'a> {
    pub bus: &'a Bus,
    pub model: Model,
}

impl<'a> Run<'a> {
    pub(super) async fn start(bus: &'a Bus) -> Self {
        sqlx::query(
            "truncate public.agent_messages, public.bus_events, bus.ready, bus.delayed, bus.expiring, bus.claims, bus.groups,
                      bus.joins, bus.awaited, bus.keys, bus.dead_letters, bus.attempts, bus.routes, bus.limits, bus.buckets,
                      bus.unsettled",
        )
        .execute(bus.pool())
        .await
        .unwrap();
        Self { bus, model: Model::new() }
    }

    /// Does it to both and compares what they answer, and then everything that can be seen.
    pub(super) async fn step(&mut self, operation: &Operation) -> Checked {
        match operation {
            Operation::Send(batch) => self.send(batch).await?,
            Operation::Flood { tenant } => self.flood(*tenant).await?,
            Operation::Claim { holder, count } => self.claim(*holder, *count).await?,
            Operation::Complete { claims } => self.complete(&self.pick(claims)).await?,
            Operation::Fail { claims } => self.fail(claims).await?,
            Operation::Release { claims } => self.release(&self.pick(claims)).await?,
            Operation::Defer { claims, for_an_hour } => self.defer(&self.pick(claims), *for_an_hour).await?,
            Operation::Extend { claims } => self.extend(&self.pick(claims)).await?,
            Operation::HandBackUnheld { holder, known } => self.hand_back_unheld(*holder, &self.pick(known)).await?,
            Operation::HolderGone { holder } => self.holder_gone(*holder).await?,
            Operation::LeasesPass => self.pass_leases().await,
            Operation::Reclaim => self.reclaim().await?,
            Operation::DelaysPass => self.pass_delays().await,
            Operation::TimesToLivePass => self.pass_times_to_live().await,
            Operation::Expire => prop_assert_eq!(self.bus.expire(1000).await.unwrap(), self.model.expire(), "expired"),
            Operation::Cancel { message } => self.cancel(*message).await?,
            Operation::Replay { message } => self.replay(*message).await?,
            Operation::Pause(paused) => self.pause(*paused).await,
            Operation::Limit(limit) => self.limit(*limit).await,
            Operation::Aging { ms } => {
                self.bus.set_aging(&ROUTE, Duration::from_millis(u64::from(*ms)), "test").await.unwrap();
                self.model.aging_ms = *ms;
            }
        }
        hold_delays(self.bus, &self.model).await;
        hold_looks(self.bus, &self.model).await;
        compare(self.bus, &self.model).await
    }

    /// Everything that was sent can be worked off, and then nothing is left.
    pub(super) async fn drain(mut self) -> Checked {
        none_is_misplaced(self.bus).await?;
        self.step(&Operation::Pause(false)).await?;
        self.step(&Operation::Limit(None)).await?;
        let most = self.model.messages.len() * 3 + 1;
        for _ in 0..most {
            if self.model.messages.iter().all(Message::ended) {
                none_is_misplaced(self.bus).await?;
                return nothing_is_left(self.bus, &self.model).await;
            }
            self.step(&Operation::DelaysPass).await?;
            self.step(&Operation::Claim { holder: 0, count: 1000 }).await?;
            for holder in 0..HOLDERS.len() {
                let claims = self.model.claims.iter().copied();
                let held: Vec<Claim> = claims.filter(|claim| self.model.owned(*claim, holder).is_some()).collect();
                self.complete(&held).await?;
            }
            compare(self.bus, &self.model).await?;
            self.step(&Operation::LeasesPass).await?;
            self.step(&Operation::Reclaim).await?;
        }
        Err(TestCaseError::fail("It cannot be worked off"))
    }

    async fn send(&mut self, batch: &[Sent]) -> Checked {
        let planned = self.model.plan(batch);
        let messages: Vec<NewMessage> = planned.iter().map(new_message).collect();
        let answered = self.bus.enqueue_many(&messages).await.unwrap();
        let created_us = self.created_us().await;
        let expected = self.model.send(&planned, &created_us);
        let real: Vec<(Uuid, bool)> = answered.into_iter().map(|sent| (sent.id, sent.duplicate)).collect();
        prop_assert_eq!(real, expected, "sent");
        Ok(())
    }

    async fn flood(&mut self, tenant: usize) -> Checked {
        let plain =
            Sent { tenant, priority: 100, group: None, key: None, delayed: false, expires: false, awaits: Vec::new() };
        self.send(&vec![plain; FLOOD]).await
    }

    pub(super) async fn created_us(&self) -> BTreeMap<Uuid, i64> {
        let rows: Vec<(Uuid, i64)> =
            sqlx::query_as("select id, (extract(epoch from created_at) * 1000000)::bigint from public.agent_messages")
                .fetch_all(self.bus.pool())
                .await
                .unwrap();
        rows.into_iter().collect()
    }

    async fn claim(&mut self, holder: usize, count: u16) -> Checked {
        let request =
            ClaimRequest { route: &ROUTE, holder: HOLDERS[holder], instance: None, max_messages: count, lease: LEASE };
        let claimed = self.bus.claim(&request).await.unwrap();
        let hasty = self.model.prepare_claim();
        let mut given = BTreeMap::new();
        for message in &claimed {
            let number = self.model.number_of(message.id);
            prop_assert!(number.is_some(), "claimed what nobody sent");
            prop_assert_eq!(&message.tenant, TENANTS[self.model.messages[number.unwrap()].tenant]);
            given.insert(number.unwrap(), message.attempt);
        }
        prop_assert_eq!(given.len(), claimed.len(), "claimed twice");
        let in_order =
            |number: &usize| (self.model.messages[*number].priority, self.model.messages[*number].created_us);
        let answered: Vec<usize> = claimed.iter().filter_map(|message| self.model.number_of(message.id)).collect();
        prop_assert!(answered.is_sorted_by_key(in_order), "answered by priority, then age");
        let doomed: Vec<Uuid> = self.model.doomed().iter().map(|number| self.model.messages[*number].id).collect();
        let dropped: Vec<Uuid> =
            sqlx::query_scalar("select id from public.agent_messages where id = any ($1) and status = 'failed'")
                .bind(doomed)
                .fetch_all(self.bus.pool())
                .await
                .unwrap();
        let dropped: BTreeSet<usize> = dropped.into_iter().filter_map(|id| self.model.number_of(id)).collect();
        self.model.take(&Taken { holder, count: usize::from(count), given, dropped }, hasty)
    }

    /// Claims by how many were made after them.
    fn pick(&self, from_newest: &[usize]) -> Vec<Claim> {
        let mut picked: Vec<Claim> = Vec::new();
        for place in from_newest {
            let Some(claim) = self.model.claims.iter().rev().nth(*place) else { continue };
            if !picked.contains(claim) {
                picked.push(*claim);
            }
        }
        picked
    }

    fn fences(&self, claims: &[Claim]) -> Vec<Fence> {
        claims.iter().map(|claim| Fence { id: self.model.messages[claim.message].id, attempt: claim.attempt }).collect()
    }

    /// Those of the claims that are still the holder's, in the order of sending.
    fn leased(&self, claims: &[Claim], holder: usize) -> Vec<usize> {
        let leased: BTreeSet<usize> = claims.iter().filter_map(|claim| self.model.leased(*claim, holder)).collect();
        leased.into_iter().collect()
    }

    /// The same, although the lease may have passed.
    pub(super) fn owned(&self, claims: &[Claim], holder: usize) -> Vec<usize> {
        let owned: BTreeSet<usize> = claims.iter().filter_map(|claim| self.model.owned(*claim, holder)).collect();
        owned.into_iter().collect()
    }

    fn ids(&self, numbers: &[usize]) -> BTreeSet<Uuid> {
        numbers.iter().map(|number| self.model.messages[*number].id).collect()
    }

    async fn complete(&mut self, claims: &[Claim]) -> Checked {
        let Some(holder) = claims.first().map(|claim| claim.holder) else { return Ok(()) };
        let done = self.leased(claims, holder);
        let fences = self.fences(claims);
        let real: Vec<Uuid> = if let [fence] = fences.as_slice() {
            let recorded = self.bus.complete(fence, HOLDERS[holder], &Completion::default()).await.unwrap();
            recorded.then_some(fence.id).into_iter().collect()
        } else {
            let ended: Vec<_> = fences.into_iter().map(|fence| (fence, Completion::default())).collect();
            self.bus.complete_many(&ended, HOLDERS[holder]).await.unwrap()
        };
        prop_assert_eq!(real.len(), done.len(), "completed twice, or not");
        prop_assert_eq!(real.into_iter().collect::<BTreeSet<_>>(), self.ids(&done), "completed");
        self.model.complete(&done);
        Ok(())
    }

    async fn fail(&mut self, claims: &[(usize, Retry)]) -> Checked {
        let mut picked: BTreeMap<Claim, Retry> = BTreeMap::new();
        for (place, retry) in claims {
            if let [claim] = self.pick(&[*place])[..] {
                picked.entry(claim).or_insert(*retry);
            }
        }
        let (claims, retries): (Vec<Claim>, Vec<Retry>) = picked.into_iter().unzip();
        let Some(holder) = claims.first().map(|claim| claim.holder) else { return Ok(()) };
        let ended: Vec<_> = self.fences(&claims).into_iter().zip(retries.iter().copied().map(failure)).collect();
        let real: Vec<(Uuid, Settled)> = if let [(fence, failure)] = ended.as_slice() {
            let settled = self.bus.fail(fence, HOLDERS[holder], failure).await.unwrap();
            settled.map(|settled| (fence.id, settled)).into_iter().collect()
        } else {
            self.bus.fail_many(&ended, HOLDERS[holder]).await.unwrap()
        };
        let mut failed: BTreeMap<usize, Retry> = BTreeMap::new();
        for (claim, retry) in claims.into_iter().zip(retries) {
            if let Some(number) = self.model.leased(claim, holder) {
                failed.insert(number, retry);
            }
        }
        prop_assert_eq!(real.len(), failed.len(), "failed twice, or not");
        let expected = self.model.fail(&failed.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(real.into_iter().collect::<BTreeMap<_, _>>(), expected, "failed");
        Ok(())
    }

    async fn release(&mut self, claims: &[Claim]) -> Checked {
        let Some(holder) = claims.first().map(|claim| claim.holder) else { return Ok(()) };
        let released = self.owned(claims, holder);
        let real = self.bus.release(&self.fences(claims), HOLDERS[holder]).await.unwrap();
        prop_assert_eq!(real, released.len() as u64, "released");
        self.model.release(&released);
        Ok(())
    }

    async fn defer(&mut self, claims: &[Claim], for_an_hour: bool) -> Checked {
        let Some(holder) = claims.first().map(|claim| claim.holder) else { return Ok(()) };
        let wait = if for_an_hour { HOUR } else { Duration::ZERO };
        let deferred = self.owned(claims, holder);
        let real = self.bus.defer(&self.fences(claims), HOLDERS[holder], wait, "not now").await.unwrap();
        prop_assert_eq!(real, deferred.len() as u64, "deferred");
        self.model.defer(&deferred, for_an_hour);
        Ok(())
    }

    async fn extend(&mut self, claims: &[Claim]) -> Checked {
        let Some(holder) = claims.first().map(|claim| claim.holder) else { return Ok(()) };
        let extended = self.leased(claims, holder);
        let real = self.bus.extend(&self.fences(claims), HOLDERS[holder], EXTENDED_LEASE).await.unwrap();
        prop_assert_eq!(real.len(), extended.len(), "extended twice, or not");
        prop_assert_eq!(real.into_iter().collect::<BTreeSet<_>>(), self.ids(&extended), "extended");
        self.model.extend(&extended);
        Ok(())
    }

    async fn hand_back_unheld(&mut self, holder: usize, known: &[Claim]) -> Checked {
        let known: BTreeSet<usize> = known.iter().map(|claim| claim.message).collect();
        let unheld: Vec<usize> =
            self.leased(&self.model.claims, holder).into_iter().filter(|number| !known.contains(number)).collect();
        let known: Vec<Uuid> = known.iter().map(|number| self.model.messages[*number].id).collect();
        let real = self.bus.hand_back_unheld(&ROUTE, HOLDERS[holder], &known).await.unwrap();
        prop_assert_eq!(real, unheld.len() as u64, "handed back");
        self.model.release(&unheld);
        Ok(())
    }
}

fn new_message(planned: &Planned) -> NewMessage {
    let sent = &planned.sent;
    NewMessage {
        id: Some(planned.id),
        tenant: Some(Tenant::new(TENANTS[sent.tenant]).unwrap()),
        priority: Some(sent.priority).filter(|priority| *priority != 100),
        max_attempts: Some(MAX_ATTEMPTS),
        delay_ms: sent.delayed.then_some(3_600_000),
        ttl_ms: sent.expires.then_some(TIME_TO_LIVE_MS),
        idempotency_key: sent.key.map(|key| format!("key-{key}")),
        group_key: sent.group.map(|group| format!("group-{group}")),
        awaits: planned.awaits.clone(),
        ..message(json!({}))
    }
}

fn failure(retry: Retry) -> Failure {
    let retry_after = match retry {
        Retry::Never | Retry::WithBackoff => None,
        Retry::AtOnce => Some(Duration::ZERO),
        Retry::InAnHour => Some(HOUR),
    };
    Failure { reason: "boom".to_owned(), retriable: !matches!(retry, Retry::Never), retry_after }
}
