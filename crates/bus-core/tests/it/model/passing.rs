//! What time, chores and operators do to both buses.

use std::time::Duration;

use cogo_bus_core::{CountedBy, Error, Limit};
use proptest::prelude::*;
use uuid::Uuid;

use crate::{
    model::{
        observing::move_delays,
        operations::HOLDERS,
        running::{Checked, Run},
        state::{Lease, State, TimeToLive},
    },
    support::ROUTE,
};

impl Run<'_> {
    pub(super) async fn holder_gone(&mut self, holder: usize) -> Checked {
        let held = self.owned(&self.model.claims, holder);
        let real: i32 = sqlx::query_scalar("select bus.requeue_held($1, 'gone')")
            .bind(HOLDERS[holder])
            .fetch_one(self.bus.pool())
            .await
            .unwrap();
        prop_assert_eq!(real as usize, held.len(), "taken from a holder");
        self.model.take_back(&held);
        Ok(())
    }

    pub(super) async fn pass_leases(&mut self) {
        sqlx::query(
            "update bus.claims set lease_until = clock_timestamp() where lease_until < clock_timestamp() + interval '5 hours'",
        )
        .execute(self.bus.pool())
        .await
        .unwrap();
        self.model.pass_leases();
    }

    pub(super) async fn reclaim(&mut self) -> Checked {
        let passed = self.model.numbers(|message| matches!(message.state, State::Claimed { lease: Lease::Passed, .. }));
        prop_assert_eq!(self.bus.reclaim(1000).await.unwrap(), passed.len() as u64, "reclaimed");
        self.model.take_back(&passed);
        Ok(())
    }

    pub(super) async fn pass_delays(&mut self) {
        let later = self.model.numbers(|message| message.later && !message.ended() && !message.claimed());
        let ids: Vec<Uuid> = later.iter().map(|number| self.model.messages[*number].id).collect();
        move_delays(self.bus, &ids, Duration::ZERO).await;
        later.iter().for_each(|number| self.model.messages[*number].later = false);
    }

    pub(super) async fn pass_times_to_live(&mut self) {
        sqlx::query(
            "with over as (
               update public.agent_messages set expires_at = clock_timestamp()
                where expires_at is not null and done_at is null
               returning id, expires_at)
             update bus.expiring e set at = over.expires_at from over where over.id = e.id",
        )
        .execute(self.bus.pool())
        .await
        .unwrap();
        for message in &mut self.model.messages {
            // what was held is looked at once more
            if matches!(message.time_to_live, TimeToLive::Ahead | TimeToLive::Swept) && !message.ended() {
                message.time_to_live = TimeToLive::Passed;
            }
        }
    }

    pub(super) async fn cancel(&mut self, message: usize) -> Checked {
        let Some(number) = newest(message, self.model.messages.len()) else { return Ok(()) };
        let real = self.bus.cancel(self.model.messages[number].id).await.unwrap();
        prop_assert_eq!(real, self.model.cancel(number), "cancelled");
        Ok(())
    }

    /// Of a dead letter, if there is one.
    pub(super) async fn replay(&mut self, message: usize) -> Checked {
        let mut candidates = self.model.numbers(|message| message.state == State::Failed);
        if candidates.is_empty() {
            candidates = self.model.numbers(|_| true);
        }
        let Some(number) = newest(message, candidates.len()).map(|place| candidates[place]) else { return Ok(()) };
        let replay = self.bus.replay(self.model.messages[number].id).await;
        if self.model.may_be_replayed(number) {
            let id = replay.unwrap();
            let created_us = self.created_us().await[&id];
            self.model.replay(number, id, created_us);
        } else {
            prop_assert!(matches!(replay, Err(Error::Conflict { .. })), "replayed: {replay:?}");
        }
        Ok(())
    }

    pub(super) async fn pause(&mut self, paused: bool) {
        if paused {
            self.bus.pause_route(&ROUTE, "test").await.unwrap();
        } else {
            self.bus.resume_route(&ROUTE, "test").await.unwrap();
        }
        self.model.paused = paused;
    }

    pub(super) async fn limit(&mut self, max_running: Option<u32>) {
        let limit = Limit { counted_by: CountedBy::Route, subject: None, max_running, per_second: None, burst: None };
        self.bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
        self.model.limit = max_running;
    }
}

fn newest(place: usize, count: usize) -> Option<usize> {
    (count > 0).then(|| count - 1 - place % count)
}
