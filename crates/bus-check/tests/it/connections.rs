//! Connections that are cut before and after the commit's reply, half-open ones, slow ones, flapping ones.

use std::time::Duration;

use cogo_bus_check::{
    Answer, Call as Recorded, Cut, Direction, Journal, Operation, Outcome, Proxy, RecordedBus, Start, Trigger, enqueue,
    enqueued,
};
use cogo_bus_core::{Bus, Claimed, Completion, Failure};
use cogo_db::PoolSettings;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{SHORT_LEASE, Stage, claim, message, plain, worker};

const LEASE: Duration = Duration::from_secs(30);
const CUTS: [Cut; 4] = [Cut::BeforeRequest, Cut::BeforeReply, Cut::InReply, Cut::AfterReply];

/// One connection, so that the one that was prepared is the one that is cut.
fn one_connection(url: &str) -> PgPool {
    // a connection that rested is looked at first; who calls has less patience than that
    let acquire_timeout = Duration::from_secs(60);
    cogo_db::connect(&PoolSettings { max_connections: 1, acquire_timeout, ..PoolSettings::new(url, "cut") }).unwrap()
}

/// Claims one message for `holder` over a sound connection.
async fn hold(bus: &RecordedBus, holder: &str) -> Claimed {
    bus.enqueue_many(&plain(1)).await.unwrap();
    claim(bus, holder, 1, LEASE).await.remove(0)
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Enqueue,
    Claim,
    Extend,
    Complete,
    CompleteMany,
    Fail,
    Release,
    Cancel,
    Reclaim,
}

const ALL: [Call; 9] = [
    Call::Enqueue,
    Call::Claim,
    Call::Extend,
    Call::Complete,
    Call::CompleteMany,
    Call::Fail,
    Call::Release,
    Call::Cancel,
    Call::Reclaim,
];

/// Makes the call over the connection that is to be cut; true if an answer came.
async fn make(call: Call, sound: &RecordedBus, cut: &RecordedBus) -> bool {
    let held = match call {
        Call::Enqueue => None,
        Call::Claim => {
            sound.enqueue_many(&plain(1)).await.unwrap();
            None
        }
        Call::Reclaim => {
            sound.enqueue_many(&plain(1)).await.unwrap();
            claim(sound, "gone", 1, SHORT_LEASE).await;
            tokio::time::sleep(SHORT_LEASE).await;
            None
        }
        _ => Some(hold(sound, "w").await),
    };
    let fence = held.as_ref().map(Claimed::fence);
    let completion = Completion { result: Some(json!({"by": "w"})), ..Completion::default() };
    match (call, fence) {
        (Call::Claim, _) => {
            let request = cogo_bus_core::ClaimRequest {
                route: &cogo_bus_check::ROUTE,
                holder: "cut",
                instance: None,
                max_messages: 1,
                lease: SHORT_LEASE,
            };
            cut.claim(&request).await.is_ok()
        }
        (Call::Reclaim, _) => cut.reclaim(10).await.is_ok(),
        (Call::Extend, Some(fence)) => cut.extend(&[fence], "w", SHORT_LEASE).await.is_ok(),
        (Call::Complete, Some(fence)) => {
            let follow_ups = vec![message(json!({"act": "plain"}))];
            cut.complete(&fence, "w", &Completion { follow_ups, ..completion }).await.is_ok()
        }
        (Call::CompleteMany, Some(fence)) => cut.complete_many(&[(fence, completion)], "w").await.is_ok(),
        (Call::Fail, Some(fence)) => {
            let failure = Failure { reason: "cut".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
            cut.fail(&fence, "w", &failure).await.is_ok()
        }
        (Call::Release, Some(fence)) => cut.release(&[fence], "w").await.is_ok(),
        (Call::Cancel, Some(fence)) => cut.cancel(fence.id).await.is_ok(),
        _ => cut.enqueue_many(&plain(2)).await.is_ok(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_cut_before_or_after_its_commit_is_done_or_not_done_and_never_half() {
    let mut stage = Stage::new().await;
    let (proxy, through) = Proxy::before(&stage.url).await.unwrap();
    let sound = stage.local("sound");
    for call in ALL {
        let cut_bus = stage.scene.local(&format!("cut-{call:?}"), one_connection(&through));
        for cut in CUTS {
            // the statement is prepared by then, so that the trap springs at its execution
            make(call, &sound, &cut_bus).await;
            proxy.trap(Trigger::Statement, cut);
            let answered = make(call, &sound, &cut_bus).await;
            proxy.sprung().await;
            assert_eq!(answered, cut == Cut::AfterReply, "{call:?} cut {cut:?}");
        }
    }
    // the sound client gives back what it holds, the rest runs out
    stage.keepers(1).await;
    declare_gone(&sound, &stage.pool, "w").await;
    stage.workers(2).await;
    let report = stage.holds().await;
    assert!(report.unknown >= 3 * (ALL.len() - 1), "{report}");
}

/// Declares a holder gone, as the registry does.
async fn declare_gone(bus: &RecordedBus, pool: &PgPool, holder: &str) {
    let number = bus.journal().invoked(Operation::RequeueHeld { holder: holder.to_owned() });
    let requeued: i32 =
        sqlx::query_scalar("select bus.requeue_held($1, 'gone')").bind(holder).fetch_one(pool).await.unwrap();
    bus.journal().returned(number, Outcome::Ok(Answer::Count(u64::from(requeued.unsigned_abs()))));
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_cut_around_its_commit_is_whole() {
    let mut stage = Stage::new().await;
    let (proxy, through) = Proxy::before(&stage.url).await.unwrap();
    let journal = stage.local("commits").journal().clone();
    let pool = one_connection(&through);
    for cut in CUTS {
        let messages: Vec<_> = plain(3)
            .into_iter()
            .map(|message| cogo_contracts::NewMessage { id: Some(uuid::Uuid::now_v7()), ..message })
            .collect();
        let number = journal.invoked(enqueue(&messages));
        let mut transaction = pool.begin().await.unwrap();
        let sent = Bus::enqueue_many_in(&mut transaction, &messages).await.unwrap();
        proxy.trap(Trigger::Commit, cut);
        let committed = transaction.commit().await;
        proxy.sprung().await;
        let outcome = match &committed {
            Ok(()) => Outcome::Ok(enqueued(&sent)),
            Err(error) => Outcome::Unknown(error.to_string()),
        };
        journal.returned(number, outcome);
        assert_eq!(committed.is_ok(), cut == Cut::AfterReply, "{cut:?}");
        let ids: Vec<_> = sent.iter().map(|sent| sent.id).collect();
        let there: i64 = sqlx::query_scalar("select count(*) from public.agent_messages where id = any ($1)")
            .bind(ids)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
        assert_eq!(there, if cut == Cut::BeforeRequest { 0 } else { 3 }, "{cut:?}");
    }
    stage.workers(1).await;
    stage.holds().await;
}

/// Waits until the completions that the server is at work on wait for these.
async fn completions_are(pool: &PgPool, waits: &[&str]) {
    let looks = async {
        loop {
            let seen: Vec<String> = sqlx::query_scalar(
                "select coalesce(wait_event_type, '') from pg_stat_activity
                  where datname = current_database() and state = 'active' and query like 'select bus.complete(%'",
            )
            .fetch_all(pool)
            .await
            .unwrap();
            if seen == waits {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LEASE, looks).await.expect("the late completion does not reach the server, or does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_that_was_stuck_on_the_way_past_its_lease_is_refused() {
    let mut stage = Stage::new().await;
    let (proxy, through) = Proxy::before(&stage.url).await.unwrap();
    let slow = stage.scene.local("slow", one_connection(&through)).with_patience(Duration::from_secs(6));
    let sound = stage.local("sound");
    sound.enqueue_many(&plain(2)).await.unwrap();
    let claimed = claim(&slow, "slow", 2, Duration::from_secs(15)).await;
    // prepared by a completion in time
    assert!(slow.complete(&claimed[0].fence(), "slow", &Completion::default()).await.unwrap());
    proxy.flow(Direction::Stalled, Direction::Open);
    let stuck = slow.complete(&claimed[1].fence(), "slow", &Completion::default()).await;
    assert!(stuck.unwrap_err().is_unknown());
    while sound.reclaim(10).await.unwrap() == 0 {
        tokio::time::sleep(SHORT_LEASE / 4).await;
    }
    let again = claim(&sound, "sound", 1, LEASE * 10).await;
    // now the late completion arrives: it is seen to wait for the table that tells whose the message is
    let mut has_the_claims = stage.pool.begin().await.unwrap();
    sqlx::query("lock table bus.claims in access exclusive mode").execute(&mut *has_the_claims).await.unwrap();
    proxy.flow(Direction::Open, Direction::Open);
    completions_are(&stage.pool, &["Lock"]).await;
    has_the_claims.commit().await.unwrap();
    completions_are(&stage.pool, &[]).await;
    assert!(sound.complete(&again[0].fence(), "sound", &Completion::default()).await.unwrap());
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_and_flapping_connections_cost_time_and_nothing_else() {
    let mut stage = Stage::new().await;
    let (flapping, flapping_url) = Proxy::before(&stage.url).await.unwrap();
    let (stalling, stalling_url) = Proxy::before(&stage.url).await.unwrap();
    let (slow, slow_url) = Proxy::before(&stage.url).await.unwrap();
    slow.flow(Direction::Delayed(Duration::from_millis(3)), Direction::Delayed(Duration::from_millis(7)));
    stage.keepers(1).await;
    for url in [flapping_url, stalling_url, slow_url] {
        let start = Start { url: Some(url), patience: Duration::from_millis(700), ..Start::new(worker()) };
        stage.start(start).await;
    }
    let sender = stage.trickle(1_000, 15).await;
    // what is under way has no outcome yet either
    let is_lost =
        |call: &Recorded| matches!(&call.outcome, Outcome::Unknown(why) if why.as_str() != "nothing came back");
    let mut rounds = 0;
    // the workers of a busy machine may come late
    while rounds < 5 || rounds < 60 && !stage.scene.history().is_ok_and(|history| history.iter().any(is_lost)) {
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
        flapping.cut_all();
        stalling.flow(Direction::Open, Direction::Stalled);
        tokio::time::sleep(Duration::from_millis(900)).await;
        stalling.flow(Direction::Open, Direction::Open);
    }
    stage.scene.ended(&sender).await.unwrap();
    stage.workers(1).await;
    let report = stage.holds().await;
    assert!(report.unknown > 0, "nothing was under way when connections went: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_carries_everything_when_told_nothing() {
    let mut stage = Stage::new().await;
    let (_proxy, through) = Proxy::before(&stage.url).await.unwrap();
    let bus = RecordedBus::new(one_connection(&through), Journal::in_memory("proxied"));
    let large = message(json!({"text": "x".repeat(500_000)}));
    let sent = bus.enqueue_many(std::slice::from_ref(&large)).await.unwrap();
    let direct = stage.local("direct");
    let claimed = claim(&direct, "w", 1, LEASE).await;
    assert_eq!((claimed[0].id, &claimed[0].payload), (sent[0].id, &large.payload));
}
