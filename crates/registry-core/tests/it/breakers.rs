//! Breakers of two processes that know of each other through the table.

use std::time::Duration;

use cogo_registry_core::{BreakerPhase, BreakerRecord, SharedBreakers};
use cogo_supervision::{
    breaker::{Breaker, Phase, Settings, Shared, SharedPhase},
    clock::ManualClock,
};
use cogo_test_support::database;

fn to_table(shared: Shared) -> BreakerRecord {
    let Shared { round, phase, open_until_ms, openings } = shared;
    let phase = if phase == SharedPhase::Open { BreakerPhase::Open } else { BreakerPhase::Closed };
    BreakerRecord { round, phase, open_until_ms, openings }
}

fn from_table(record: BreakerRecord) -> Shared {
    let BreakerRecord { round, phase, open_until_ms, openings } = record;
    let phase = if phase == BreakerPhase::Open { SharedPhase::Open } else { SharedPhase::Closed };
    Shared { round, phase, open_until_ms, openings }
}

async fn exchange(table: &SharedBreakers, by: &str, breaker: &Breaker) -> bool {
    let told = table.exchange(breaker.name(), by, "test", |now_ms, theirs| {
        if let Some(theirs) = theirs {
            breaker.merge(now_ms, from_table(theirs));
        }
        to_table(breaker.export(now_ms))
    });
    told.await.unwrap()
}

fn breaker(hand: &ManualClock) -> Breaker {
    let settings = Settings { jitter: 0.0, open_for: Duration::from_secs(60), ..Settings::default() };
    Breaker::with_seed("mail", settings, hand.clock(), 1).unwrap()
}

#[tokio::test]
async fn an_opening_in_one_process_is_one_in_the_other_and_so_is_its_end() {
    let database = database().await;
    let (one_table, other_table) =
        (SharedBreakers::new(database.pool.clone()), SharedBreakers::new(database.another_pool()));
    let (one_hand, other_hand) = (ManualClock::new(), ManualClock::new());
    let (one, other) = (breaker(&one_hand), breaker(&other_hand));
    assert!(!exchange(&one_table, "one", &one).await, "what never opened needs no row");
    assert!(one_table.list().await.unwrap().is_empty());

    one.trip("test");
    assert!(exchange(&one_table, "one", &one).await);
    assert!(!exchange(&one_table, "one", &one).await, "telling it twice changes nothing");
    assert!(!exchange(&other_table, "other", &other).await, "it has nothing new to tell");
    assert_eq!(other.phase(), Phase::Open);

    other_hand.advance(Duration::from_secs(60));
    for _ in 0..2 {
        other.acquire().unwrap().success();
    }
    assert!(exchange(&other_table, "other", &other).await);
    exchange(&one_table, "one", &one).await;
    assert_eq!(one.phase(), Phase::Closed);
    let [row] = one_table.list().await.unwrap().try_into().unwrap();
    assert_eq!((row.version, row.changed_by.as_str(), row.record.phase), (2, "other", BreakerPhase::Closed));
    let kinds: Vec<String> =
        sqlx::query_scalar("select kind from public.bus_events where kind like 'breaker%' order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(kinds, ["breaker_opened", "breaker_closed"]);
}

#[tokio::test]
async fn two_that_open_at_once_agree_on_the_greater() {
    let database = database().await;
    let table = SharedBreakers::new(database.pool.clone());
    let (hand, late_hand) = (ManualClock::new(), ManualClock::new());
    let (one, other) = (breaker(&hand), breaker(&late_hand));
    one.trip("test");
    other.trip("test");
    let (first, second) = tokio::join!(exchange(&table, "one", &one), exchange(&table, "other", &other));
    assert!(first || second);
    exchange(&table, "one", &one).await;
    exchange(&table, "other", &other).await;
    let [row] = table.list().await.unwrap().try_into().unwrap();
    assert_eq!(to_table(one.export(0)), row.record);
    assert_eq!(to_table(other.export(0)), row.record);
}

#[tokio::test]
async fn a_record_never_goes_back_even_with_the_right_version() {
    let database = database().await;
    let table = SharedBreakers::new(database.pool.clone());
    let hand = ManualClock::new();
    let one = breaker(&hand);
    one.trip("test");
    one.trip("again");
    exchange(&table, "one", &one).await;
    let put = |version: i64, round: i64, phase: &'static str| {
        let pool = database.pool.clone();
        async move {
            let accepted: Result<bool, sqlx::Error> = sqlx::query_scalar(
                "select accepted from registry.share_breaker('mail', $1, $2, $3,
                   case $3 when 'open' then registry.milliseconds(clock_timestamp()) end, 1, 'psql', 'test')",
            )
            .bind(version)
            .bind(round)
            .bind(phase)
            .fetch_one(&pool)
            .await;
            accepted.unwrap()
        }
    };
    assert!(!put(1, 1, "closed").await, "an older round");
    assert!(!put(1, 2, "open").await, "the same round, ending earlier");
    assert!(!put(7, 3, "open").await, "a version that is not there");
    assert!(!put(0, 3, "open").await, "new, though it is there");
    assert!(put(1, 2, "closed").await);
    assert!(!put(1, 3, "open").await, "the version of before");
    assert!(put(2, 3, "open").await);
}

#[tokio::test]
async fn an_opening_of_more_than_a_day_is_refused() {
    let database = database().await;
    let put = sqlx::query(
        "select registry.share_breaker('mail', 0, 1, 'open',
           registry.milliseconds(clock_timestamp() + interval '2 days'), 1, 'psql', 'test')",
    );
    let refusal = put.execute(&database.pool).await.unwrap_err();
    assert!(refusal.to_string().contains("more than a day"), "{refusal}");
}
