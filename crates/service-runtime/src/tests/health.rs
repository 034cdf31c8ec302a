//! What probes of a service do to its process: the answers of `/readyz` and `/livez`, and whether it claims.

use std::sync::atomic::AtomicBool;

use cogo_supervision::{
    breaker::Settings as BreakerSettings,
    probe::{Kind, Spec},
};
use tokio::runtime::Handle;

use super::*;
use crate::{
    Dependencies, DependencySettings, Reach,
    entry::work,
    health::{Health, probe},
};

/// Asked so often that a test need not wait.
fn often(name: &str, kind: Kind) -> Spec {
    let period = Duration::from_millis(10);
    // no answer is late, however busy the machine is: what fails here says so itself
    Spec { period, timeout: PATIENCE, failure_threshold: 1, ..Spec::new(name, kind) }
}

/// Waits until the answer is as expected.
async fn until(mut answer: impl FnMut() -> (bool, Value), reached: impl Fn(bool, &Value) -> bool) -> Value {
    let waiting = async {
        loop {
            let (holds, body) = answer();
            if reached(holds, &body) {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the answer changes")
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_probes_of_a_service_show_with_their_reasons() {
    let dependencies = Dependencies::alone();
    let settings = DependencySettings {
        breaker: BreakerSettings { open_for: Duration::from_secs(60), ..BreakerSettings::default() },
        ..DependencySettings::default()
    };
    let mail = dependencies.dependency("mail", Reach::Run, &settings).unwrap();
    mail.breaker().trip("test");
    let health = Health::with(dependencies);
    let (well, lives) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let answer = |flag: &Arc<AtomicBool>, text: &'static str| {
        let flag = Arc::clone(flag);
        move || {
            let holds = flag.load(Ordering::SeqCst);
            std::future::ready(if holds { Ok(()) } else { Err(text.to_owned()) })
        }
    };
    let work = Handle::current();
    let probes = vec![
        probe(often("disk", Kind::Readiness), work.clone(), answer(&well, "the disk is full")),
        probe(often("heart", Kind::Liveness), work.clone(), answer(&lives, "it stopped")),
    ];
    assert_eq!(health.is_ready(), (false, json!({"ready": false})), "before the service has started");
    health.ask(probes, work).unwrap();
    let waits =
        until(|| health.is_ready(), |_, body| body["reasons"].as_array().is_some_and(|all| all.len() == 2)).await;
    assert!(waits["reasons"].to_string().contains("does not count this process as active"), "{waits}");
    health.ready.store(true, Ordering::Relaxed);
    let body = until(|| health.is_ready(), |ready, body| ready && body["status"] == "degraded").await;
    assert!(body["reasons"].to_string().contains("not called for now: mail"), "{body}");
    assert_eq!(body["dependencies"], json!([{"name": "mail", "phase": "open"}]));

    well.store(false, Ordering::SeqCst);
    let body = until(|| health.is_ready(), |ready, _| !ready).await;
    assert!(body["reasons"].to_string().contains("the disk is full"), "{body}");
    assert!(health.live().0, "what only keeps work away asks for no restart");
    lives.store(false, Ordering::SeqCst);
    let body = until(|| health.live(), |live, _| !live).await;
    assert!(body["reasons"].to_string().contains("it stopped"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn process_whose_readiness_fails_claims_nothing_and_tells_the_fleet() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, wakeups, leave) = (Stop::default(), WakeUps::default(), CancellationToken::new());
    let (heartbeat, member) = join(&bus);
    let mut tasks = JoinSet::new();
    let until_left = leave.clone();
    tasks.spawn(async move {
        heartbeat.run(until_left).await;
    });
    member.activate();
    let health = Health::default();
    let well = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&well);
    let disk = probe(often("disk", Kind::Critical), Handle::current(), move || {
        let holds = asked.load(Ordering::SeqCst);
        std::future::ready(if holds { Ok(()) } else { Err("full".to_owned()) })
    });
    health.ask(vec![disk], Handle::current()).unwrap();
    let mut able = health.able();
    let handler = Obedient::default();
    let pace = Pace { poll: Duration::from_millis(50), ..pace() };
    let worker = Worker::new(
        handler.clone(),
        pace,
        Surroundings { able: health.able(), ..surroundings(bus.clone(), wakeups, member.clone(), &stop) },
    );
    let parts: Vec<futures_util::future::BoxFuture<'static, ()>> = vec![Box::pin(async move {
        // the worker begins once the probe has spoken
        able.wait_for(|able| !able).await.unwrap();
        worker.run().await;
    })];
    let (ending, watched) = (stop.clone(), member.clone());
    let working = TaskTracker::new().spawn(async move { work(parts, &watched, &health, &ending).await });

    let message = NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({"what": "answer"}));
    let id = bus.enqueue(&message).await.unwrap().id;
    let registry = Registry::new(database.pool.clone());
    let told = async |ready: bool| {
        let telling = async {
            while registry
                .list()
                .await
                .unwrap()
                .first()
                .is_none_or(|agent| agent.state.as_str() != "active" || agent.ready != ready)
            {
                member.ask_now();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, telling).await.expect("the fleet is told");
    };
    told(false).await;
    assert_eq!(handler.calls.load(Ordering::SeqCst), 0, "it is active, and takes no work");
    assert_eq!(bus.task(id).await.unwrap().unwrap().status, TaskStatus::Queued);
    well.store(true, Ordering::SeqCst);
    let done = async {
        while bus.task(id).await.unwrap().unwrap().status != TaskStatus::Done {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("it works again");
    told(true).await;
    stop.soft().cancel();
    working.await.unwrap().unwrap();
    stop.hard().cancel();
    leave.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_fail_for_long_are_told_and_cost_no_readiness() {
    let health = Health::default();
    health.ready.store(true, Ordering::Relaxed);
    let pulse = health.pulses.add("worker a/b/0".to_owned(), PATIENCE);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    pulse.fails(long_ago, "permission denied for function claim");
    health.ask(Vec::new(), Handle::current()).unwrap();
    let body = until(|| health.is_ready(), |ready, body| ready && body["status"] == "degraded").await;
    let reasons = body["reasons"].to_string();
    assert!(reasons.contains("worker a/b/0 for "), "{body}");
    assert!(reasons.contains("permission denied for function claim"), "{body}");
    pulse.works();
    until(|| health.is_ready(), |_, body| !body["reasons"].to_string().contains("claims")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_cannot_claim_says_so_until_it_can() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    sqlx::raw_sql("alter function bus.claim rename to hidden").execute(bus.pool()).await.unwrap();
    let (stop, leave, pulses) = (Stop::default(), CancellationToken::new(), Pulses::default());
    let (heartbeat, member) = join(&bus);
    let mut tasks = JoinSet::new();
    let until_left = leave.clone();
    tasks.spawn(async move {
        heartbeat.run(until_left).await;
    });
    member.activate();
    let surroundings = surroundings(bus.clone(), WakeUps::default(), member, &stop);
    let pace = Pace { poll: Duration::from_millis(50), ..pace() };
    let worker = Worker::new(Obedient::default(), pace, Surroundings { pulses: pulses.clone(), ..surroundings });
    let working = TaskTracker::new().spawn(worker.run());
    let told = async |reached: fn(&[String]) -> bool| {
        let telling = async {
            while !reached(&pulses.in_vain(Duration::ZERO)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, telling).await.expect("it is told");
    };
    told(|told| told.iter().any(|told| told.starts_with("worker test/work") && told.contains("does not exist"))).await;
    sqlx::raw_sql("alter function bus.hidden rename to claim").execute(bus.pool()).await.unwrap();
    told(<[String]>::is_empty).await;
    stop.hard().cancel();
    working.await.unwrap();
    leave.cancel();
    while tasks.join_next().await.is_some() {}
}
