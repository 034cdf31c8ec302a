//! Figures for people equal the rows, also while much is in flight.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, Failure, StatusCounts, failures, load, recent_messages, summary, totals};
use cogo_contracts::NewMessage;
use serde_json::json;

use crate::support::{bus, claim, leases_to_pass, message, numbered};

const WINDOW: Duration = Duration::from_secs(300);

/// Rows of the table by status, but what stands in a claim counts as claimed.
async fn rows(bus: &Bus) -> StatusCounts {
    let counts: Vec<(String, i64)> = sqlx::query_as(
        "select case when m.done_at is null and exists (select from bus.whereabouts() w where w.id = m.id and w.place = 'claimed')
                  then 'claimed' else m.status end, count(*)
           from public.agent_messages m group by 1",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    let of = |status: &str| counts.iter().find(|(name, _)| name == status).map_or(0, |(_, count)| *count);
    StatusCounts {
        queued: of("queued"),
        claimed: of("claimed"),
        done: of("done"),
        failed: of("failed"),
        cancelled: of("cancelled"),
    }
}

async fn assert_figures_equal_the_rows(bus: &Bus, when: &str) -> StatusCounts {
    let expected = rows(bus).await;
    let summary = summary(bus.pool(), WINDOW).await.unwrap();
    assert_eq!(summary.by_status, expected, "{when}");
    assert_eq!(summary.capped, Default::default(), "{when}");
    let routes: (i64, i64) = summary.by_route.iter().fold((0, 0), |sum, row| (sum.0 + row.queued, sum.1 + row.claimed));
    assert_eq!(routes, (expected.queued, expected.claimed), "{when}");
    let totals = totals(bus.pool()).await.unwrap();
    for (status, count) in [
        ("queued", expected.queued),
        ("claimed", expected.claimed),
        ("done", expected.done),
        ("failed", expected.failed),
        ("cancelled", expected.cancelled),
    ] {
        let shown: i64 = totals.iter().filter(|row| row.status == status).map(|row| row.messages).sum();
        assert_eq!(shown, count, "{when}: {status}");
    }
    expected
}

#[tokio::test]
async fn counts_are_right_while_a_large_claim_is_in_flight() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(250)).await.unwrap();
    let held = claim(&bus, "w", 200).await;
    let in_rows: i64 = sqlx::query_scalar("select count(*) from public.agent_messages where status = 'claimed'")
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(in_rows, 0, "the rows do not show it yet");
    let counts = assert_figures_equal_the_rows(&bus, "claimed").await;
    assert_eq!((counts.queued, counts.claimed), (50, 200));
    let shown = recent_messages(bus.pool(), 500).await.unwrap();
    let claimed: Vec<_> = shown.iter().filter(|row| row.status == "claimed").collect();
    assert_eq!(claimed.len(), 200);
    assert!(claimed.iter().all(|row| row.attempts == 1 && row.claimed_by.as_deref() == Some("w")));
    assert!(claimed.iter().all(|row| row.wait_ms.is_some() && row.run_ms.is_some()));

    let fences: Vec<_> = held[..100].iter().map(|claimed| claimed.fence()).collect();
    bus.extend(&fences, "w", Duration::from_secs(60)).await.unwrap();
    assert_figures_equal_the_rows(&bus, "half of it extended").await;
    let ended: Vec<_> = held[..70].iter().map(|claimed| (claimed.fence(), Completion::default())).collect();
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 70);
    for claimed in &held[70..80] {
        let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        bus.fail(&claimed.fence(), "w", &failure).await.unwrap();
    }
    for claimed in &held[150..155] {
        bus.cancel(claimed.id).await.unwrap();
    }
    let counts = assert_figures_equal_the_rows(&bus, "partly ended").await;
    assert_eq!((counts.done, counts.failed, counts.cancelled, counts.claimed), (70, 10, 5, 115));
    leases_to_pass(&bus).await;
    bus.reclaim(1000).await.unwrap();
    let counts = assert_figures_equal_the_rows(&bus, "reclaimed").await;
    assert_eq!((counts.queued, counts.claimed), (165, 0));
}

#[tokio::test]
async fn whatever_a_message_waits_for_it_counts_once_as_queued() {
    let (bus, _database) = bus().await;
    let grouped = |message: NewMessage| NewMessage { group_key: Some("g".to_owned()), ..message };
    let sent = bus.enqueue_many(&numbered(3)).await.unwrap();
    let awaits: Vec<_> = sent.iter().map(|sent| sent.id).collect();
    let delayed = NewMessage { delay_ms: Some(60_000), ..message(json!({})) };
    let join = NewMessage { awaits, ..message(json!({})) };
    let direct = NewMessage { target_instance: Some("there/0".to_owned()), ..message(json!({})) };
    let batch = [
        delayed.clone(),
        NewMessage { target_instance: Some("there/0".to_owned()), ..delayed },
        join.clone(),
        grouped(message(json!({}))),
        grouped(message(json!({}))),
        grouped(message(json!({}))),
        grouped(join),
        direct,
    ];
    bus.enqueue_many(&batch).await.unwrap();
    let counts = assert_figures_equal_the_rows(&bus, "waiting").await;
    assert_eq!(counts.queued, 11);
    let summary = summary(bus.pool(), WINDOW).await.unwrap();
    assert_eq!((summary.delayed, summary.by_route.len()), (2, 1));
    assert!(summary.oldest_queued_age_s.is_some());
}

#[tokio::test]
async fn oldest_is_the_one_that_was_sent_first_whatever_its_priority() {
    let (bus, _database) = bus().await;
    let old = NewMessage { priority: Some(900), ..message(json!({})) };
    let old = bus.enqueue(&old).await.unwrap().id;
    bus.enqueue_many(&numbered(300)).await.unwrap();
    sqlx::query("update public.agent_messages set created_at = created_at - interval '77 seconds' where id = $1")
        .bind(old)
        .execute(bus.pool())
        .await
        .unwrap();
    let summary = summary(bus.pool(), WINDOW).await.unwrap();
    let age = summary.oldest_queued_age_s.unwrap();
    assert!((77.0..107.0).contains(&age), "{age}");
    assert_eq!(summary.by_route[0].oldest_age_s.map(f64::round), Some(age.round()));
}

/// Rows in front of which the newest ends stand, sent in one statement without the bus's own doings.
async fn fill(bus: &Bus, ended: i64, seconds_ago: f64) {
    sqlx::query("alter table public.agent_messages disable trigger user").execute(bus.pool()).await.unwrap();
    sqlx::query(
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload, status, attempts, claimed_by,
                created_at, claimed_at, done_at)
         select id, id, 'test', 'work', 'acme', '{}', 'done', 1, 'w', at - interval '1 second', at, at
           from (select bus.uuid_v7() as id, clock_timestamp() - $2 * interval '1 second' as at
                   from generate_series(1, $1)) as n",
    )
    .bind(ended)
    .bind(seconds_ago)
    .execute(bus.pool())
    .await
    .unwrap();
    sqlx::query("alter table public.agent_messages enable trigger user").execute(bus.pool()).await.unwrap();
}

#[tokio::test]
async fn what_ended_last_is_found_before_a_long_queue() {
    let (bus, _database) = bus().await;
    fill(&bus, 300, 10.0).await;
    sqlx::query(
        "insert into public.agent_messages (service, role, tenant, payload)
         select 'test', 'work', 'acme', '{}' from generate_series(1, 30000)",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let summary = summary(bus.pool(), WINDOW).await.unwrap();
    assert_eq!((summary.by_status.queued, summary.latency_ms.n), (30_000, 300));
    assert_eq!(summary.by_route[0].done, 300);
    assert!((summary.latency_ms.p50.unwrap() - 1000.0).abs() < 1e-6);
    let held = claim(&bus, "w", 1).await;
    assert!(bus.complete(&held[0].fence(), "w", &Completion::default()).await.unwrap());
    let shown = recent_messages(bus.pool(), 100).await.unwrap();
    assert_eq!(
        (shown[0].id, shown[0].status.as_str()),
        (held[0].id, "done"),
        "what happened last, behind 30,000 newer ones"
    );
}

#[tokio::test]
async fn more_ends_than_the_sample_shorten_the_window_and_not_the_rate() {
    let (bus, _database) = bus().await;
    for seconds_ago in [200.0, 150.0, 100.0, 50.0, 1.0] {
        fill(&bus, 6000, seconds_ago).await;
    }
    let summary = summary(bus.pool(), WINDOW).await.unwrap();
    assert!((149.0..199.0).contains(&summary.window_s) || summary.window_s >= 200.0, "{}", summary.window_s);
    assert_eq!(summary.latency_ms.n, 25_000, "the newest ones");
    let rate = summary.throughput_per_s;
    assert!((rate - 25_000.0 / summary.window_s).abs() < 1e-6, "{rate}");
    assert!(summary.window_s < WINDOW.as_secs_f64());
}

#[tokio::test]
async fn failures_are_grouped_and_newest_first() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(9)).await.unwrap();
    for (number, claimed) in claim(&bus, "w", 9).await.into_iter().enumerate() {
        let reason = if number < 6 { format!("row {number} is broken") } else { "no such table".to_owned() };
        let failure = Failure { reason, retriable: false, retry_after: None };
        bus.fail(&claimed.fence(), "w", &failure).await.unwrap();
    }
    let groups = failures(bus.pool(), 10).await.unwrap();
    let told: Vec<_> = groups.iter().map(|group| (group.error.as_str(), group.count)).collect();
    assert_eq!(told, [("no such table", 3), ("row <n> is broken", 6)]);
    let listed = bus.dead_letters(4).await.unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.is_sorted_by(|a, b| a.failed_at >= b.failed_at));
    assert_eq!(listed[0].error, "no such table");
}

#[tokio::test]
async fn the_mean_time_of_work_is_of_what_ran_and_ended_lately() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(5)).await.unwrap();
    let mean = async || summary(bus.pool(), WINDOW).await.unwrap().by_route[0].mean_run_ms;
    assert_eq!(mean().await, None);
    let held = claim(&bus, "w", 4).await;
    assert_eq!(mean().await, None, "what still runs says nothing");
    for claimed in &held[..2] {
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    }
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&held[2].fence(), "w", &failure).await.unwrap();
    for id in [held[3].id, held[0].id] {
        // the second one has ended and stays so
        bus.cancel(id).await.unwrap();
    }
    let times = "update public.agent_messages set claimed_at = done_at - interval '1 ms' * $2 where id = $1";
    for (claimed, run_ms) in held.iter().zip([100, 200, 600, 9000]) {
        sqlx::query(times).bind(claimed.id).bind(run_ms).execute(bus.pool()).await.unwrap();
    }
    let mean = mean().await.unwrap();
    assert!((mean - 300.0).abs() < 1e-6, "{mean}: neither what was cancelled nor what waits counts");
    // what a pool is scaled by is a part of the same
    let whole = summary(bus.pool(), WINDOW).await.unwrap();
    let part = load(bus.pool(), WINDOW).await.unwrap();
    let figures =
        |stats: &cogo_bus_core::RouteStats| (stats.queued, stats.claimed, stats.done, stats.failed, stats.mean_run_ms);
    assert_eq!((part.window_s, figures(&part.by_route[0])), (whole.window_s, figures(&whole.by_route[0])));
}
