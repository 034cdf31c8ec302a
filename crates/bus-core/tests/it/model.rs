//! Random operations on the bus and on a plain model of it must agree on every answer.

use std::collections::BTreeMap;

use cogo_bus_core::{Bus, Completion, Failure, Fence, Settled};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::json;
use uuid::Uuid;

use crate::support::{bus, claim, delays_to_pass, leases_to_pass, message};

const HOLDERS: [&str; 2] = ["w", "v"];
const MAX_ATTEMPTS: i16 = 2;

#[derive(Debug, Clone)]
enum Operation {
    Send,
    Claim {
        holder: usize,
        count: u16,
    },
    /// Ends the claim number `pick` of all claims ever made, stale ones included.
    Complete {
        pick: usize,
    },
    Fail {
        pick: usize,
        retriable: bool,
    },
    Release {
        pick: usize,
    },
    Reclaim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Claimed(usize),
    Done,
    Failed,
}

struct Entry {
    state: State,
    attempts: i16,
    released: i16,
}

#[derive(Default)]
struct Model {
    /// In the order of sending, which is the order of claiming.
    messages: BTreeMap<usize, (Uuid, Entry)>,
    /// Every claim ever made: message, attempt, holder.
    claims: Vec<(usize, i16, usize)>,
}

impl Model {
    fn claim(&mut self, holder: usize, count: u16) -> Vec<(Uuid, i16)> {
        let mut taken = Vec::new();
        for (number, (id, entry)) in &mut self.messages {
            if entry.state == State::Queued && taken.len() < usize::from(count) {
                entry.state = State::Claimed(holder);
                entry.attempts += 1;
                self.claims.push((*number, entry.attempts, holder));
                taken.push((*id, entry.attempts));
            }
        }
        taken
    }

    fn owned(&mut self, pick: usize) -> Option<&mut Entry> {
        let (number, attempt, holder) = *self.claims.get(pick)?;
        let (_, entry) = self.messages.get_mut(&number)?;
        (entry.state == State::Claimed(holder) && entry.attempts == attempt).then_some(entry)
    }

    fn reclaim(&mut self) -> u64 {
        let mut reclaimed = 0;
        for (_, entry) in self.messages.values_mut() {
            if matches!(entry.state, State::Claimed(_)) {
                entry.state =
                    if entry.attempts - entry.released < MAX_ATTEMPTS { State::Queued } else { State::Failed };
                reclaimed += 1;
            }
        }
        reclaimed
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let pick = 0..12_usize;
    let one = prop_oneof![
        3 => Just(Operation::Send),
        4 => (0..2_usize, 1..3_u16).prop_map(|(holder, count)| Operation::Claim { holder, count }),
        3 => pick.clone().prop_map(|pick| Operation::Complete { pick }),
        2 => (pick.clone(), any::<bool>()).prop_map(|(pick, retriable)| Operation::Fail { pick, retriable }),
        1 => pick.prop_map(|pick| Operation::Release { pick }),
        1 => Just(Operation::Reclaim),
    ];
    prop::collection::vec(one, 1..30)
}

async fn apply(bus: &Bus, model: &mut Model, operation: &Operation) {
    match *operation {
        Operation::Send => {
            let mut sent = message(json!({}));
            sent.max_attempts = Some(MAX_ATTEMPTS);
            let id = bus.enqueue(&sent).await.unwrap().id;
            let entry = Entry { state: State::Queued, attempts: 0, released: 0 };
            model.messages.insert(model.messages.len(), (id, entry));
        }
        Operation::Claim { holder, count } => {
            let real: Vec<_> =
                claim(bus, HOLDERS[holder], count).await.iter().map(|claimed| (claimed.id, claimed.attempt)).collect();
            assert_eq!(real, model.claim(holder, count));
        }
        Operation::Complete { pick } => {
            let Some((fence, holder)) = fence(model, pick) else { return };
            let real = bus.complete(&fence, holder, &Completion::default()).await.unwrap();
            let entry = model.owned(pick);
            assert_eq!(real, entry.is_some());
            if let Some(entry) = entry {
                entry.state = State::Done;
            }
        }
        Operation::Fail { pick, retriable } => {
            let Some((fence, holder)) = fence(model, pick) else { return };
            let failure =
                Failure { reason: "boom".to_owned(), retriable, retry_after: Some(std::time::Duration::ZERO) };
            let real = bus.fail(&fence, holder, &failure).await.unwrap();
            let expected = model.owned(pick).map(|entry| {
                let again = retriable && entry.attempts - entry.released < MAX_ATTEMPTS;
                entry.state = if again { State::Queued } else { State::Failed };
                if again { Settled::Again } else { Settled::DeadLetter }
            });
            assert_eq!(real, expected);
        }
        Operation::Release { pick } => {
            let Some((fence, holder)) = fence(model, pick) else { return };
            let real = bus.release(&[fence], holder).await.unwrap();
            let entry = model.owned(pick);
            assert_eq!(real, u64::from(entry.is_some()));
            if let Some(entry) = entry {
                entry.state = State::Queued;
                entry.released += 1;
            }
        }
        Operation::Reclaim => {
            leases_to_pass(bus).await;
            assert_eq!(bus.reclaim(100).await.unwrap(), model.reclaim());
            // the model knows no time
            delays_to_pass(bus).await;
        }
    }
}

fn fence(model: &Model, pick: usize) -> Option<(Fence, &'static str)> {
    let (number, attempt, holder) = *model.claims.get(pick)?;
    Some((Fence { id: model.messages[&number].0, attempt }, HOLDERS[holder]))
}

async fn stored(bus: &Bus, id: Uuid) -> (String, i16, i16) {
    sqlx::query_as("select status, attempts, released from public.agent_messages where id = $1")
        .bind(id)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bus_and_model_agree() {
    let (bus, _database) = bus().await;
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() });
        let agreed = runner.run(&operations(), |operations| {
            handle.block_on(async {
                sqlx::query(
                    "truncate public.agent_messages, public.bus_events, bus.ready, bus.delayed, bus.expiring, bus.claims,
                              bus.keys, bus.dead_letters, bus.attempts",
                )
                .execute(bus.pool())
                .await
                .unwrap();
                let mut model = Model::default();
                for operation in &operations {
                    apply(&bus, &mut model, operation).await;
                }
                let misplaced: i64 =
                    sqlx::query_scalar("select count(*) from bus.misplaced()").fetch_one(bus.pool()).await.unwrap();
                assert_eq!(misplaced, 0);
                for (id, entry) in model.messages.values() {
                    let expected = match entry.state {
                        State::Queued => "queued",
                        State::Claimed(_) => "claimed",
                        State::Done => "done",
                        State::Failed => "failed",
                    };
                    assert_eq!(stored(&bus, *id).await, (expected.to_owned(), entry.attempts, entry.released));
                }
            });
            Ok(())
        });
        agreed.unwrap();
    });
}
