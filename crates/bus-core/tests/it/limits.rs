//! Limits hold over all processes: how many run at once, how many start in a second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cogo_bus_core::{Bus, Claimed, Completion, CountedBy, Limit};
use cogo_contracts::{NewMessage, Tenant};
use cogo_test_support::TestDatabase;
use serde_json::json;
use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::support::{PATIENCE, ROUTE, bus, claim, claim_one, delays_to_pass, leases_to_pass, message};

const CLAIMERS: usize = 8;

fn at_most(counted_by: CountedBy, max_running: u32) -> Limit {
    Limit { counted_by, subject: None, max_running: Some(max_running), per_second: None, burst: None }
}

fn rate(counted_by: CountedBy, per_second: f64, burst: f64) -> Limit {
    Limit { counted_by, subject: None, max_running: None, per_second: Some(per_second), burst: Some(burst) }
}

fn of(tenant: &str, key: Option<&str>, count: u32) -> Vec<NewMessage> {
    let tenant = Tenant::new(tenant).unwrap();
    let limit_key = key.map(str::to_owned);
    (0..count)
        .map(|_| NewMessage { tenant: Some(tenant.clone()), limit_key: limit_key.clone(), ..message(json!({})) })
        .collect()
}

/// Claimers with a connection each, as so many processes have.
async fn claimers(database: &TestDatabase) -> Vec<Bus> {
    let mut claimers = Vec::new();
    for _ in 0..CLAIMERS {
        claimers.push(Bus::new(PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap()));
    }
    claimers
}

/// All claim at once; what they got, with the holder.
async fn claim_at_once(claimers: &[Bus], want: u16) -> Vec<(String, Claimed)> {
    let claims = claimers.iter().enumerate().map(|(number, bus)| async move {
        let holder = format!("w{number}");
        let claimed = claim(bus, &holder, want).await;
        claimed.into_iter().map(move |claimed| (holder.clone(), claimed)).collect::<Vec<_>>()
    });
    futures_util::future::join_all(claims).await.into_iter().flatten().collect()
}

/// What runs now, by what the limit counts, from one snapshot.
async fn running(bus: &Bus, counted_by: CountedBy) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select case $1 when 'route' then '' when 'tenant' then tenant else tenant || '/' || coalesce(limit_key, '') end,
                count(*)
           from public.agent_messages where status = 'claimed' group by 1",
    )
    .bind(counted_by.as_str())
    .fetch_all(bus.pool())
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// 8 claimers work everything off and never see more at once than the limit.
async fn limit_holds(counted_by: CountedBy, max_running: u32, subjects: i64) {
    let (bus, database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(counted_by, max_running), "test").await.unwrap();
    let mut total = 0;
    for tenant in ["acme", "globex"] {
        for key in [Some("one"), Some("two"), None] {
            let batch = of(tenant, key, 12);
            total += batch.len();
            bus.enqueue_many(&batch).await.unwrap();
        }
    }
    let claimers = claimers(&database).await;
    let first = claim_at_once(&claimers, 50).await;
    let most = i64::from(max_running);
    let full = running(&bus, counted_by).await;
    let limited: Vec<_> = full.iter().filter(|(subject, _)| !subject.ends_with('/')).collect();
    assert_eq!(limited.len() as i64, subjects, "{full:?}");
    assert!(limited.iter().all(|(_, count)| **count == most), "all that may run does: {full:?}");

    let ended = Arc::new(Mutex::new(0));
    let work = claimers.iter().enumerate().map(|(number, claimer)| {
        let holder = format!("w{number}");
        let mut in_hand: Vec<Claimed> =
            first.iter().filter(|(of, _)| *of == holder).map(|(_, claimed)| claimed.clone()).collect();
        let (ended, observer) = (Arc::clone(&ended), bus.clone());
        async move {
            while *ended.lock().unwrap() < total {
                for claimed in std::mem::take(&mut in_hand) {
                    assert!(claimer.complete(&claimed.fence(), &holder, &Completion::default()).await.unwrap());
                    *ended.lock().unwrap() += 1;
                }
                in_hand = claim(claimer, &holder, 3).await;
                for (subject, count) in running(&observer, counted_by).await {
                    assert!(subject.ends_with('/') || count <= most, "{count} of {subject:?} run at once");
                }
            }
        }
    });
    tokio::time::timeout(PATIENCE * 3, futures_util::future::join_all(work)).await.expect("everything gets its turn");
    assert_eq!(*ended.lock().unwrap(), total);
    assert!(running(&bus, counted_by).await.is_empty());
}

#[tokio::test]
async fn messages_of_a_route_that_run_at_once_stay_within_its_limit() {
    limit_holds(CountedBy::Route, 5, 1).await;
}

#[tokio::test]
async fn messages_of_each_tenant_that_run_at_once_stay_within_its_limit() {
    limit_holds(CountedBy::Tenant, 3, 2).await;
}

#[tokio::test]
async fn messages_of_each_key_that_run_at_once_stay_within_its_limit() {
    limit_holds(CountedBy::Key, 2, 4).await;
}

#[tokio::test]
async fn limit_of_one_tenant_goes_before_the_one_for_every_tenant() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(CountedBy::Tenant, 1), "test").await.unwrap();
    let of_acme = Limit { subject: Some("acme".to_owned()), ..at_most(CountedBy::Tenant, 4) };
    bus.set_limit(&ROUTE, &of_acme, "test").await.unwrap();
    for tenant in ["acme", "globex", "initech"] {
        bus.enqueue_many(&of(tenant, None, 9)).await.unwrap();
    }
    assert_eq!(claim(&bus, "w", 100).await.len(), 4 + 1 + 1);
    assert!(claim(&bus, "w", 100).await.is_empty());
}

#[tokio::test]
async fn limit_per_key_also_holds_for_what_was_sent_before_it() {
    let (bus, _database) = bus().await;
    for _ in 0..5 {
        for key in ["one", "two"] {
            bus.enqueue_many(&of("acme", Some(key), 3)).await.unwrap();
        }
    }
    bus.set_limit(&ROUTE, &at_most(CountedBy::Key, 4), "test").await.unwrap();
    let mut got = claim(&bus, "w", 100).await;
    got.extend(claim(&bus, "w", 100).await);
    let expected = [("acme/one".to_owned(), 4), ("acme/two".to_owned(), 4)];
    assert_eq!(running(&bus, CountedBy::Key).await.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(got.len(), 8);
}

#[tokio::test]
async fn limit_zero_stops_one_tenant_and_its_removal_lets_it_go_on() {
    let (bus, _database) = bus().await;
    let stopped = Limit { subject: Some("acme".to_owned()), ..at_most(CountedBy::Tenant, 0) };
    bus.set_limit(&ROUTE, &stopped, "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 2)).await.unwrap();
    bus.enqueue_many(&of("globex", None, 2)).await.unwrap();
    let got = claim(&bus, "w", 10).await;
    assert!(got.len() == 2 && got.iter().all(|claimed| claimed.tenant == "globex"), "{got:?}");
    bus.set_limit(&ROUTE, &Limit { max_running: None, ..stopped }, "test").await.unwrap();
    assert_eq!(claim(&bus, "w", 10).await.len(), 2);
}

/// As if this long had passed since the last claim.
async fn seconds_pass(bus: &Bus, seconds: i64) {
    sqlx::query("update bus.buckets set at = at - $1 * interval '1 second'")
        .bind(seconds)
        .execute(bus.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn rate_lets_a_burst_start_and_then_what_time_brings() {
    let (bus, database) = bus().await;
    // so slow that the time of the test itself brings nothing
    bus.set_limit(&ROUTE, &rate(CountedBy::Route, 0.001, 5.0), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 60)).await.unwrap();
    let claimers = claimers(&database).await;
    let starts = async |why: &str, expected: usize| {
        let first = claim_at_once(&claimers, 2).await;
        let then = claim_at_once(&claimers, 2).await;
        assert_eq!(first.len() + then.len(), expected, "{why}");
        for (holder, claimed) in first.iter().chain(&then) {
            assert!(bus.complete(&claimed.fence(), holder, &Completion::default()).await.unwrap());
        }
    };
    starts("the burst", 5).await;
    starts("ends give nothing back", 0).await;
    seconds_pass(&bus, 2_010).await;
    starts("one each 1000 s", 2).await;
    seconds_pass(&bus, 1_000_000).await;
    starts("never more than the burst", 5).await;
}

#[tokio::test]
async fn rates_count_each_tenant_apart() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &rate(CountedBy::Tenant, 0.001, 3.0), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 10)).await.unwrap();
    bus.enqueue_many(&of("globex", None, 2)).await.unwrap();
    assert_eq!(claim(&bus, "w", 10).await.len(), 3 + 2);
    bus.enqueue_many(&of("globex", None, 2)).await.unwrap();
    assert_eq!(claim(&bus, "w", 10).await.len(), 1);
}

#[tokio::test]
async fn worker_learns_when_a_rate_lets_the_next_one_start() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &rate(CountedBy::Tenant, 0.01, 1.0), "test").await.unwrap();
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), None, "nothing waits");
    bus.enqueue_many(&of("acme", None, 3)).await.unwrap();
    assert_eq!(claim(&bus, "w", 10).await.len(), 1);
    let due = bus.next_due(&ROUTE).await.unwrap().expect("a token comes in 100 s");
    assert!((Duration::from_secs(70)..=Duration::from_secs(100)).contains(&due), "{due:?}");
    seconds_pass(&bus, 60).await;
    let due = bus.next_due(&ROUTE).await.unwrap().unwrap();
    assert!(due <= Duration::from_secs(40), "{due:?}");
    let soon = NewMessage { delay_ms: Some(5_000), ..message(json!({})) };
    bus.enqueue(&soon).await.unwrap();
    let due = bus.next_due(&ROUTE).await.unwrap().unwrap();
    assert!(due <= Duration::from_secs(5), "what is due sooner counts: {due:?}");
    seconds_pass(&bus, 60).await;
    assert_eq!(claim(&bus, "w", 10).await.len(), 1);
}

#[tokio::test]
async fn rate_of_who_has_nothing_waiting_keeps_no_worker_awake() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &rate(CountedBy::Tenant, 0.01, 1.0), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 1)).await.unwrap();
    claim_one(&bus, "w").await;
    seconds_pass(&bus, 1_000).await;
    bus.enqueue_many(&of("globex", None, 2)).await.unwrap();
    claim_one(&bus, "w").await;
    let due = bus.next_due(&ROUTE).await.unwrap().unwrap();
    assert!(due > Duration::from_secs(70), "acme may start again, but has nothing: {due:?}");
    // nor does a token help who waits for a slot
    bus.set_limit(&ROUTE, &at_most(CountedBy::Route, 3), "test").await.unwrap();
    bus.enqueue_many(&of("initech", None, 4)).await.unwrap();
    assert_eq!(claim(&bus, "other", 9).await.len(), 1);
    seconds_pass(&bus, 1_000).await;
    assert!(claim(&bus, "other", 9).await.is_empty(), "three run");
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), None, "only an end lets the next one start");
}

#[tokio::test]
async fn slot_that_is_freed_wakes_the_route_however_it_was_freed() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(CountedBy::Tenant, 1), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 6)).await.unwrap();
    for way in ["complete", "fail", "release", "cancel", "reclaim", "requeue"] {
        let held = claim_one(&bus, "w").await;
        assert!(claim(&bus, "other", 5).await.is_empty());
        let mut listener = PgListener::connect_with(bus.pool()).await.unwrap();
        listener.listen("bus_ready").await.unwrap();
        match way {
            "complete" => assert!(bus.complete(&held.fence(), "w", &Completion::default()).await.unwrap()),
            "fail" => {
                let later = Some(Duration::from_secs(60));
                let failure = cogo_bus_core::Failure { reason: "x".to_owned(), retriable: true, retry_after: later };
                bus.fail(&held.fence(), "w", &failure).await.unwrap();
            }
            "release" => assert_eq!(bus.release(&[held.fence()], "w").await.unwrap(), 1),
            "cancel" => assert_eq!(bus.cancel(held.root_id).await.unwrap(), 1),
            "reclaim" => {
                leases_to_pass(&bus).await;
                assert_eq!(bus.reclaim(10).await.unwrap(), 1);
            }
            _ => {
                sqlx::query("select bus.requeue_held('w', 'gone')").execute(bus.pool()).await.unwrap();
            }
        }
        let woken =
            tokio::time::timeout(PATIENCE, listener.recv()).await.unwrap_or_else(|_| panic!("{way}: no wake-up"));
        assert_eq!(woken.unwrap().payload(), ROUTE.to_string(), "{way}");
        delays_to_pass(&bus).await;
    }
    assert_eq!(claim(&bus, "other", 5).await.len(), 1, "and somebody can have it");
}

#[tokio::test]
async fn heartbeats_keep_the_slot_and_count_it_once() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(CountedBy::Route, 3), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 9)).await.unwrap();
    let held = claim(&bus, "w", 3).await;
    // a part of what was claimed together
    let part = [held[0].fence()];
    assert_eq!(bus.extend(&part, "w", Duration::from_secs(60)).await.unwrap().len(), 1);
    assert!(claim(&bus, "other", 9).await.is_empty());
    assert!(bus.complete(&held[1].fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(claim(&bus, "other", 9).await.len(), 1);
}

#[tokio::test]
async fn slot_of_a_message_that_is_extended_beside_a_completion_stays_taken() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(CountedBy::Route, 2), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 6)).await.unwrap();
    let held = claim(&bus, "w", 2).await;
    let mut ending = bus.pool().begin().await.unwrap();
    assert!(Bus::complete_in(&mut ending, &held[0].fence(), "w", &Completion::default()).await.unwrap());
    // the claim is locked, so this one gets a lease of its own
    assert_eq!(bus.extend(&[held[1].fence()], "w", Duration::from_secs(60)).await.unwrap().len(), 1);
    ending.commit().await.unwrap();
    let pass = "update bus.claims set lease_until = clock_timestamp() where limited";
    assert_eq!(sqlx::query(pass).execute(bus.pool()).await.unwrap().rows_affected(), 1);
    bus.reclaim(10).await.unwrap();
    assert_eq!(claim(&bus, "other", 5).await.len(), 1, "the other slot is taken");
    assert!(bus.complete(&held[1].fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(claim(&bus, "other", 5).await.len(), 1);
}

#[tokio::test]
async fn tenants_whose_names_hash_alike_have_a_limit_each() {
    let (bus, _database) = bus().await;
    let (one, other) = ("team-29776", "team-186634");
    let alike: bool = sqlx::query_scalar("select hashtext($1) = hashtext($2)")
        .bind(one)
        .bind(other)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert!(alike, "this Postgres hashes otherwise: look for two other names");
    bus.set_limit(&ROUTE, &at_most(CountedBy::Tenant, 1), "test").await.unwrap();
    bus.enqueue_many(&of(one, Some("a key counts nothing here"), 2)).await.unwrap();
    bus.enqueue_many(&of(other, None, 1)).await.unwrap();
    let mut tenants: Vec<_> = claim(&bus, "w", 10).await.into_iter().map(|claimed| claimed.tenant).collect();
    tenants.sort_unstable();
    assert_eq!(tenants, [other, one]);
}

#[tokio::test]
async fn tenants_who_may_have_nothing_keep_no_other_from_his_turn() {
    let (first, database) = bus().await;
    // a session begins its rounds anywhere: these begin with the least
    sqlx::query(
        "do $$ begin
           execute format('alter database %I set \"bus.turn_%s\" to ''-2147483648''', current_database(),
                          bus.lane('test/work/0', null) & 9223372036854775807);
         end $$",
    )
    .execute(first.pool())
    .await
    .unwrap();
    let bus = Bus::new(PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap());
    bus.set_limit(&ROUTE, &at_most(CountedBy::Tenant, 0), "test").await.unwrap();
    let send = "with names as (select 'team-' || n as name from generate_series(1, 4500) as n)
                insert into public.agent_messages (service, role, tenant, payload)
                select 'test', 'work', name, '{}' from names order by hashtext(name)";
    sqlx::query(send).execute(bus.pool()).await.unwrap();
    let middle = "select tenant from bus.ready order by share offset 2200 limit 1";
    let free: String = sqlx::query_scalar(middle).fetch_one(bus.pool()).await.unwrap();
    let limit = Limit { subject: Some(free.clone()), ..at_most(CountedBy::Tenant, 5) };
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    assert!(claim(&bus, "w", 1).await.is_empty(), "a claim looks at 2,048");
    assert_eq!(claim_one(&bus, "w").await.tenant, free);
}

#[tokio::test]
async fn what_starts_while_there_is_no_rate_is_not_counted_by_the_next() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &rate(CountedBy::Route, 10.0, 1.0), "test").await.unwrap();
    bus.enqueue_many(&of("acme", None, 400)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1).await.len(), 1);
    let limit = at_most(CountedBy::Route, 1000);
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    assert_eq!(claim(&bus, "w", 300).await.len(), 300);
    bus.set_limit(&ROUTE, &rate(CountedBy::Route, 10.0, 1.0), "test").await.unwrap();
    let wait = bus.next_due(&ROUTE).await.unwrap().unwrap();
    assert!(wait <= Duration::from_millis(100), "{wait:?}");
}

#[tokio::test]
async fn what_a_route_let_start_counts_for_a_limit_of_keys_set_later() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &at_most(CountedBy::Route, 10), "test").await.unwrap();
    bus.enqueue_many(&of("acme", Some("gpu"), 4)).await.unwrap();
    assert_eq!(claim(&bus, "early", 3).await.len(), 3);
    bus.set_limit(&ROUTE, &at_most(CountedBy::Key, 2), "test").await.unwrap();
    assert!(claim(&bus, "late", 4).await.is_empty(), "three of the key run");
}

#[tokio::test]
async fn instance_learns_when_a_rate_lets_its_own_message_start() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &rate(CountedBy::Route, 2.0, 1.0), "test").await.unwrap();
    let direct = NewMessage { target_instance: Some("worker/1".to_owned()), ..message(json!({})) };
    bus.enqueue_many(&[message(json!({})), direct]).await.unwrap();
    claim_one(&bus, "w").await;
    let wait = bus.next_due_for(&ROUTE, Some("worker/1")).await.unwrap();
    assert!(wait.is_some_and(|wait| wait <= Duration::from_millis(500)), "{wait:?}");
    assert_eq!(bus.next_due_for(&ROUTE, Some("worker/2")).await.unwrap(), None);
}
