//! Broadcasts: everyone reads everything once acknowledged, whatever the order of the commits.

use std::time::Duration;

use cogo_bus_core::{Broadcast, BroadcastBatch, Bus, Error, NewBroadcast, StartAt, Subscription, Wake, WakeUps};
use cogo_contracts::Tenant;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{PATIENCE, PAUSE, bus};

/// Other tests of the cluster hold transactions open for moments, which delays what may be read.
const POLL: Duration = Duration::from_millis(20);

fn news(number: u32) -> NewBroadcast {
    NewBroadcast::new("news", Tenant::new("acme").unwrap(), json!({"number": number}))
}

fn numbers(broadcasts: &[Broadcast]) -> Vec<u64> {
    broadcasts.iter().map(|broadcast| broadcast.payload["number"].as_u64().unwrap()).collect()
}

async fn next(bus: &Bus, subscription: &Subscription, max_rows: u16) -> BroadcastBatch {
    let deaf = WakeUps::default();
    timeout(PATIENCE, bus.next_broadcasts(subscription, max_rows, &deaf, POLL)).await.expect("a broadcast").unwrap()
}

/// Reads and acknowledges until this number has come.
async fn read_until(bus: &Bus, subscription: &Subscription, number: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while !seen.contains(&number) {
        let batch = next(bus, subscription, 2).await;
        assert!(bus.acknowledge_broadcasts(subscription, &batch.from, &batch.through).await.unwrap());
        seen.extend(numbers(&batch.broadcasts));
    }
    seen
}

#[tokio::test]
async fn every_consumer_reads_everything_in_order_at_its_own_pace() {
    let (bus, _database) = bus().await;
    let (one, other) = (Subscription::new("one", "news"), Subscription::new("other", "news"));
    assert!(bus.subscribe(&one, StartAt::Latest).await.unwrap());
    assert!(bus.subscribe(&other, StartAt::Latest).await.unwrap());
    for number in 1..=5 {
        bus.publish(&news(number)).await.unwrap();
    }
    bus.publish(&NewBroadcast { topic: "weather".to_owned(), ..news(6) }).await.unwrap();
    assert_eq!(read_until(&bus, &one, 5).await, [1, 2, 3, 4, 5]);
    assert_eq!(bus.read_broadcasts(&one, 10).await.unwrap(), None);
    assert_eq!(read_until(&bus, &other, 5).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn row_that_commits_late_under_a_lower_number_is_not_skipped() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    let mut slow = bus.pool().begin().await.unwrap();
    let mut fast = bus.pool().begin().await.unwrap();
    let low = Bus::publish_in(&mut slow, &news(1)).await.unwrap();
    let high = Bus::publish_in(&mut fast, &news(2)).await.unwrap();
    assert!(low < high);
    fast.commit().await.unwrap();
    assert_eq!(bus.read_broadcasts(&reader, 10).await.unwrap(), None, "the slow one may still come before it");
    slow.commit().await.unwrap();
    assert_eq!(read_until(&bus, &reader, 2).await, [1, 2]);
}

#[tokio::test]
async fn older_transaction_that_takes_a_higher_number_is_not_skipped() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    // numbered first, by whatever it wrote before
    let mut older = bus.pool().begin().await.unwrap();
    sqlx::query("select pg_current_xact_id()").execute(&mut *older).await.unwrap();
    let mut younger = bus.pool().begin().await.unwrap();
    let low = Bus::publish_in(&mut younger, &news(1)).await.unwrap();
    let high = Bus::publish_in(&mut older, &news(2)).await.unwrap();
    assert!(low < high);
    older.commit().await.unwrap();
    // the one with the higher number may be read now, and moves the cursor
    assert_eq!(read_until(&bus, &reader, 2).await, [2]);
    younger.commit().await.unwrap();
    assert_eq!(read_until(&bus, &reader, 1).await, [1]);
}

#[tokio::test]
async fn writers_that_overlap_and_break_off_lose_nothing_and_leave_nothing() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    let writers = (0..4_u32).map(|writer| {
        let bus = bus.clone();
        async move {
            for round in 0..20 {
                let mut transaction = bus.pool().begin().await.unwrap();
                Bus::publish_in(&mut transaction, &news(writer * 100 + round)).await.unwrap();
                tokio::task::yield_now().await;
                if round % 5 == 4 { transaction.rollback().await.unwrap() } else { transaction.commit().await.unwrap() }
            }
        }
    });
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < 4 * 16 {
            let batch = next(&bus, &reader, 3).await;
            assert!(bus.acknowledge_broadcasts(&reader, &batch.from, &batch.through).await.unwrap());
            seen.extend(numbers(&batch.broadcasts));
        }
        seen
    };
    let (_, mut seen) = tokio::join!(futures_util::future::join_all(writers), reading);
    seen.sort_unstable();
    let committed = |number: &u64| number % 5 != 4;
    let expected: Vec<u64> =
        (0..4).flat_map(|writer| (0..20).map(move |round| writer * 100 + round)).filter(committed).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn late_joiner_starts_where_it_says() {
    let (bus, _database) = bus().await;
    let witness = Subscription::new("witness", "news");
    bus.subscribe(&witness, StartAt::Earliest).await.unwrap();
    bus.publish(&news(1)).await.unwrap();
    bus.publish(&news(2)).await.unwrap();
    // so that no open transaction holds them back any more
    read_until(&bus, &witness, 2).await;
    let second: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select max(at) from bus.broadcasts").fetch_one(bus.pool()).await.unwrap();
    let named = |consumer| Subscription::new(consumer, "news");
    for (consumer, start) in
        [("earliest", StartAt::Earliest), ("latest", StartAt::Latest), ("since", StartAt::Since(second))]
    {
        assert!(bus.subscribe(&named(consumer), start).await.unwrap());
    }
    bus.publish(&news(3)).await.unwrap();
    assert_eq!(read_until(&bus, &named("earliest"), 3).await, [1, 2, 3]);
    assert_eq!(read_until(&bus, &named("since"), 3).await, [2, 3]);
    assert_eq!(read_until(&bus, &named("latest"), 3).await, [3]);
    assert!(!bus.subscribe(&named("latest"), StartAt::Earliest).await.unwrap(), "it stays where it is");
    assert_eq!(bus.read_broadcasts(&named("latest"), 10).await.unwrap(), None);
}

#[tokio::test]
async fn joiner_at_latest_misses_nothing_that_commits_after_it() {
    let (bus, _database) = bus().await;
    let mut open = bus.pool().begin().await.unwrap();
    Bus::publish_in(&mut open, &news(1)).await.unwrap();
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    open.commit().await.unwrap();
    assert_eq!(read_until(&bus, &reader, 1).await, [1]);
}

#[tokio::test]
async fn two_instances_advance_their_consumer_once() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    for number in 1..=3 {
        bus.publish(&news(number)).await.unwrap();
    }
    let (one, other) = (next(&bus, &reader, 1).await, next(&bus, &reader, 1).await);
    assert_eq!(one, other, "what is not acknowledged is read again");
    assert!(bus.acknowledge_broadcasts(&reader, &one.from, &one.through).await.unwrap());
    assert!(!bus.acknowledge_broadcasts(&reader, &other.from, &other.through).await.unwrap());
    let rest = next(&bus, &reader, 1).await;
    assert_eq!(numbers(&rest.broadcasts), [2]);
    assert!(!bus.acknowledge_broadcasts(&reader, &rest.from, &one.through).await.unwrap(), "never backwards");
    assert_eq!(read_until(&bus, &reader, 3).await, [2, 3]);
}

#[tokio::test]
async fn acknowledgements_at_once_let_one_through() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    bus.publish(&news(1)).await.unwrap();
    let batch = next(&bus, &reader, 10).await;
    let acknowledgements = (0..8).map(|_| bus.acknowledge_broadcasts(&reader, &batch.from, &batch.through));
    let answers = futures_util::future::join_all(acknowledgements).await;
    assert_eq!(answers.into_iter().filter(|answer| *answer.as_ref().unwrap()).count(), 1);
}

#[tokio::test]
async fn part_of_a_batch_may_be_acknowledged() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    let mut transaction = bus.pool().begin().await.unwrap();
    for number in 1..=3 {
        Bus::publish_in(&mut transaction, &news(number)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let batch = next(&bus, &reader, 10).await;
    assert_eq!(numbers(&batch.broadcasts), [1, 2, 3]);
    assert!(bus.acknowledge_broadcasts(&reader, &batch.from, &batch.broadcasts[1].position).await.unwrap());
    assert_eq!(numbers(&next(&bus, &reader, 10).await.broadcasts), [3]);
}

#[tokio::test]
async fn reader_of_one_tenant_sees_no_other() {
    let (bus, _database) = bus().await;
    let other = Tenant::new("other").unwrap();
    let everyone = Subscription::new("reader", "news");
    let only_other = Subscription { tenant: Some(other.clone()), ..everyone.clone() };
    bus.subscribe(&everyone, StartAt::Latest).await.unwrap();
    assert!(bus.subscribe(&only_other, StartAt::Latest).await.unwrap(), "a position of its own");
    bus.publish(&news(1)).await.unwrap();
    bus.publish(&NewBroadcast { tenant: other, ..news(2) }).await.unwrap();
    assert_eq!(read_until(&bus, &only_other, 2).await, [2]);
    assert_eq!(read_until(&bus, &everyone, 2).await, [1, 2]);
}

#[tokio::test]
async fn expired_broadcasts_are_not_read_and_then_removed() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    for number in 1..=3 {
        bus.publish(&news(number)).await.unwrap();
    }
    sqlx::query("update bus.broadcasts set expires_at = clock_timestamp() where payload ->> 'number' <> '3'")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(read_until(&bus, &reader, 3).await, [3]);
    assert_eq!(bus.retain_broadcasts(1).await.unwrap(), 1);
    assert_eq!(bus.retain_broadcasts(10).await.unwrap(), 1);
    assert_eq!(bus.retain_broadcasts(10).await.unwrap(), 0);
    let left: i64 = sqlx::query_scalar("select count(*) from bus.broadcasts").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn cursor_that_nobody_reads_is_removed_and_one_that_is_read_stays() {
    let (bus, _database) = bus().await;
    let (gone, quiet) = (Subscription::new("gone", "news"), Subscription::new("quiet", "news"));
    for subscription in [&gone, &quiet] {
        bus.subscribe(subscription, StartAt::Latest).await.unwrap();
    }
    sqlx::query("update bus.cursors set seen_at = clock_timestamp() - interval '31 days'")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(bus.read_broadcasts(&quiet, 1).await.unwrap(), None);
    bus.retain_broadcasts(10).await.unwrap();
    assert!(matches!(bus.read_broadcasts(&gone, 1).await, Err(Error::NotFound { .. })));
    assert!(bus.unsubscribe(&quiet).await.unwrap());
    assert!(!bus.unsubscribe(&quiet).await.unwrap());
}

#[tokio::test]
async fn what_is_against_the_contract_is_refused() {
    let (bus, _database) = bus().await;
    for refused in [
        NewBroadcast { topic: "News!".to_owned(), ..news(1) },
        NewBroadcast { payload: Value::Null, ..news(1) },
        NewBroadcast { ttl: Some(Duration::ZERO), ..news(1) },
        NewBroadcast { payload: json!({"big": "x".repeat(1_100_000)}), ..news(1) },
    ] {
        assert!(matches!(bus.publish(&refused).await, Err(Error::Refused { .. })), "{:?}", refused.topic);
    }
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    for position in ["", "1.2", "1.99999999999.0", "x"] {
        let refused = sqlx::query("select bus.acknowledge_broadcasts('reader', 'news', '1.1.1', $1)")
            .bind(position)
            .execute(bus.pool())
            .await
            .unwrap_err();
        assert!(matches!(refused.into(), Error::Refused { .. }), "{position}");
    }
}

#[tokio::test]
async fn publishing_wakes_those_who_follow_the_topic_and_nobody_otherwise() {
    let (bus, _database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.clone().run(bus.pool().clone(), stop.clone()));
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::CatchUp);
    bus.publish(&news(1)).await.unwrap();
    bus.subscribe(&Subscription::new("reader", "weather"), StartAt::Latest).await.unwrap();
    bus.publish(&NewBroadcast { topic: "weather".to_owned(), ..news(2) }).await.unwrap();
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::Broadcast("weather".to_owned()));
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn waiting_reader_is_woken_without_a_poll() {
    let (bus, database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.clone().run(bus.pool().clone(), stop.clone()));
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::CatchUp);
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    // one connection of its own, so that nobody else's statement stands in the place of its last look
    let own = PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap();
    let session: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&own).await.unwrap();
    let never = Duration::from_secs(86_400);
    let reading = TaskTracker::new().spawn({
        let (bus, reader, wakeups) = (Bus::new(own), reader.clone(), wakeups.clone());
        async move { bus.next_broadcasts(&reader, 10, &wakeups, never).await.unwrap() }
    });
    // it has looked and found nothing, so that from now on only a hint can bring it back
    let has_looked = "select exists (select from pg_stat_activity
                        where pid = $1 and state = 'idle' and query like '%broadcasts_held_back%')";
    let looking = async {
        while !sqlx::query_scalar::<_, bool>(has_looked).bind(session).fetch_one(bus.pool()).await.unwrap() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("the reader looks");
    bus.publish(&news(1)).await.unwrap();
    let read = timeout(PATIENCE, reading).await.expect("it was woken").unwrap();
    assert_eq!(numbers(&read.broadcasts), [1]);
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn rows_brought_from_another_cluster_stay_readable_and_come_first() {
    let (bus, _database) = bus().await;
    let reader = Subscription::new("reader", "news");
    bus.subscribe(&reader, StartAt::Latest).await.unwrap();
    bus.publish(&news(1)).await.unwrap();
    bus.publish(&news(2)).await.unwrap();
    assert_eq!(numbers(&next(&bus, &reader, 1).await.broadcasts), [1]);
    // as after dump and restore: numbers of transactions far beyond those of this cluster
    for statement in [
        "update bus.broadcast_epochs set system_identifier = 1",
        "update bus.broadcasts set xid = (xid::text::bigint + 1000000000000)::text::xid8",
        "update bus.cursors set xid = (xid::text::bigint + 1000000000000)::text::xid8",
    ] {
        sqlx::query(statement).execute(bus.pool()).await.unwrap();
    }
    bus.publish(&news(3)).await.unwrap();
    assert_eq!(read_until(&bus, &reader, 3).await, [1, 2, 3]);
}
