//! What a worker knows of the leases of what it has in hand: of each message the last attempt, and no more than the database says.

use cogo_bus_core::{ClaimRequest, Claimed, Fence};
use tokio::time::Instant;

use super::*;
use crate::{leases::Leases, pulse::Pulse};

/// Renewed three times in it, so that nothing but doubt asks the database within a test.
const LONG: Duration = Duration::from_secs(600);

/// A message that is in hand, whose lease is being kept.
struct InHand {
    bus: Bus,
    claimed: Claimed,
    leases: Arc<Leases>,
    token: Arc<CancellationToken>,
    stop: CancellationToken,
    _database: TestDatabase,
}

impl InHand {
    async fn new() -> Self {
        let database = cogo_test_support::database().await;
        let bus = Bus::new(database.pool.clone());
        bus.enqueue(&NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({}))).await.unwrap();
        let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 1, lease: LONG };
        let claimed = bus.claim(&request).await.unwrap().remove(0);
        let (leases, stop) = (Arc::new(Leases::default()), CancellationToken::new());
        let token = Arc::<CancellationToken>::default();
        leases.add(std::iter::once((claimed.fence(), Arc::clone(&token))), &"w".into(), Instant::now() + LONG);
        let pulse: Arc<Pulse> = Pulses::default().add("test".to_owned(), LONG);
        let before = leases.owned_until(&claimed.fence());
        TaskTracker::new().spawn({
            let (bus, leases, stop) = (bus.clone(), Arc::clone(&leases), stop.clone());
            async move { leases.keep(&bus, LONG, &pulse, &stop).await }
        });
        let in_hand = Self { bus, claimed, leases, token, stop, _database: database };
        in_hand.renewed_since(before).await;
        in_hand
    }

    /// The beat at the start renews it once, and doubt does when it finds that it is ours.
    async fn renewed_since(&self, before: Option<Instant>) {
        let renewed = async {
            while self.leases.owned_until(&self.claimed.fence()) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, renewed).await.expect("nobody asks");
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn whoever_only_says_that_a_message_was_taken_back_stops_no_work() {
    let in_hand = InHand::new().await;
    let before = in_hand.leases.owned_until(&in_hand.claimed.fence());
    in_hand.leases.doubt(in_hand.claimed.id);
    in_hand.renewed_since(before).await;
    assert!(!in_hand.token.is_cancelled());
}

#[tokio::test]
async fn message_that_was_taken_back_is_dropped_long_before_the_next_beat() {
    let in_hand = InHand::new().await;
    assert_eq!(in_hand.bus.cancel(in_hand.claimed.id).await.unwrap(), 1);
    assert!(!in_hand.token.is_cancelled(), "nobody has said so");
    in_hand.leases.doubt(in_hand.claimed.id);
    tokio::time::timeout(PATIENCE, in_hand.token.cancelled()).await.expect("nobody asks");
}

#[tokio::test]
async fn end_of_an_attempt_takes_nothing_from_the_next_one() {
    let leases = Leases::default();
    let attempts = [1, 2].map(|attempt| Fence { id: Uuid::now_v7(), attempt });
    let (first, second) = (Fence { id: attempts[1].id, ..attempts[0].clone() }, attempts[1].clone());
    let tokens = [(); 2].map(|()| Arc::<CancellationToken>::default());
    leases.add(std::iter::once((first.clone(), Arc::clone(&tokens[0]))), &"w".into(), Instant::now() + LONG);
    leases.add(std::iter::once((second.clone(), Arc::clone(&tokens[1]))), &"w".into(), Instant::now() + LONG);
    assert_eq!([tokens[0].is_cancelled(), tokens[1].is_cancelled()], [true, false], "the first is ours no more");
    assert!(leases.owned_until(&first).is_none());
    leases.remove([&first]);
    assert_eq!(leases.len(), 1);
    assert!(leases.owned_until(&second).is_some());
    leases.remove([&second]);
    assert_eq!(leases.len(), 0);
}
