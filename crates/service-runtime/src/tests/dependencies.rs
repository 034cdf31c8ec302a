//! What a dependency that fails does to messages, to other processes, and to the time that follow-ups have.

use std::sync::Mutex;

use cogo_registry_core::SharedBreakers;
use cogo_supervision::{
    breaker::{Phase, Settings as BreakerSettings},
    budget::Budget,
    bulkhead::Settings as BulkheadSettings,
    clock::Clock,
};
use tokio::sync::Notify;

use super::*;
use crate::{Dependencies, Dependency, DependencySettings, Reach, Unanswered};

const ROUTE_OF_CALLS: Route = Route::constant("test", "calls");
const HOUR: Duration = Duration::from_secs(3_600);

/// Opens after two failures, for an hour.
fn brittle() -> DependencySettings {
    let breaker =
        BreakerSettings { consecutive_failures: 2, open_for: HOUR, longest_open: HOUR, ..BreakerSettings::default() };
    DependencySettings { breaker, ..DependencySettings::default() }
}

#[derive(Debug, thiserror::Error)]
#[error("it is down")]
struct Down;

/// Calls something that is down.
#[derive(Clone)]
struct Calling {
    dependency: Dependency,
    calls: Arc<AtomicU32>,
    budgets: Arc<Mutex<Vec<Option<Duration>>>>,
}

impl Handler for Calling {
    const ROUTE: Route = ROUTE_OF_CALLS;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _: Value, claim: &Claim) -> Result<Value, HandlerError> {
        self.budgets.lock().unwrap().push(claim.budget().map(|budget| budget.remaining()));
        let calls = Arc::clone(&self.calls);
        let call = async move {
            calls.fetch_add(1, Ordering::SeqCst);
            Err::<Value, _>(Down)
        };
        match claim.call(&self.dependency, call, |Down| true).await {
            Ok(value) => Ok(value),
            Err(unanswered) => Err(HandlerError::reject(unanswered.or_retry(self.dependency.name())?)),
        }
    }
}

#[tokio::test]
async fn message_whose_dependency_fails_waits_without_a_call() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, wakeups, leave) = (Stop::default(), WakeUps::default(), CancellationToken::new());
    let (heartbeat, member) = join(&bus);
    member.activate();
    let mut tasks = JoinSet::new();
    let until = leave.clone();
    tasks.spawn(async move {
        heartbeat.run(until).await;
    });
    let dependency = Dependency::alone("mail", &brittle()).unwrap();
    let handler = Calling { dependency: dependency.clone(), calls: Arc::default(), budgets: Arc::default() };
    let pace = Pace { concurrency: 1, poll: Duration::from_millis(50), ..pace() };
    let worker = Worker::new(handler.clone(), pace, surroundings(bus.clone(), wakeups, member, &stop));
    let working = TaskTracker::new().spawn(worker.run());
    let send = async |ttl_ms: Option<u64>| {
        let mut message = NewMessage::new(ROUTE_OF_CALLS, Some(Tenant::new("acme").unwrap()), json!({}));
        message.ttl_ms = ttl_ms;
        bus.enqueue(&message).await.unwrap().id
    };
    let step_with_error = async |id: Uuid| {
        let told = async {
            loop {
                let step = bus.task(id).await.unwrap().unwrap().steps.remove(0);
                if step.error.is_some() {
                    return step;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("an attempt ends")
    };
    for _ in 0..2 {
        let failed = send(Some(60_000)).await;
        assert_eq!(step_with_error(failed).await.error.as_deref(), Some("it is down"));
    }
    assert_eq!(dependency.phase(), Phase::Open);

    let spared = step_with_error(send(None).await).await;
    assert!(spared.error.unwrap().contains("Circuit is open"));
    let wait = spared.retry_at.expect("it is tried again") - spared.claimed_at.unwrap();
    // with the time from the claim to the end of the attempt, on a busy machine
    assert!((300..=420).contains(&wait.num_seconds()), "as long as anything waits: {wait}");
    assert_eq!(handler.calls.load(Ordering::SeqCst), 2, "an open circuit lets no call through");
    let budgets = handler.budgets.lock().unwrap().clone();
    assert!(budgets[0].is_some_and(|left| left <= Duration::from_secs(58)), "{budgets:?}");
    assert_eq!(budgets[2], None, "without a time to live there is no end to it");

    stop.hard().cancel();
    working.await.unwrap();
    leave.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn opening_in_one_process_is_known_to_the_other_and_is_an_event() {
    let database = cogo_test_support::database().await;
    let (one, other) = (Dependencies::alone(), Dependencies::alone());
    let stop = CancellationToken::new();
    let mut exchanges = JoinSet::new();
    let here = one.dependency("mail", Reach::Fleet, &brittle()).unwrap();
    let mine = one.dependency("disk", Reach::Replica, &brittle()).unwrap();
    let quiet = one.dependency("bus", Reach::Run, &brittle()).unwrap();
    exchanges.spawn(one.clone().exchange(database.pool.clone(), "one/0#1".to_owned(), stop.clone()));
    for dependency in [&here, &mine, &quiet] {
        for _ in 0..2 {
            let failed = dependency.call("acme", None, async { Err::<(), _>(Down) }, |Down| true).await;
            assert!(matches!(failed, Err(Unanswered::Failed(Down))));
        }
    }
    let table = SharedBreakers::new(database.pool.clone());
    let both_told = async {
        while table.list().await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both_told).await.expect("the opening is told at once");
    let names: Vec<String> = table.list().await.unwrap().into_iter().map(|breaker| breaker.name).collect();
    assert_eq!(names, ["disk of nobody/0", "mail"]);
    let causes: Vec<(String, String)> = sqlx::query_as(
        "select kind, detail ->> 'cause' from public.bus_events where detail ->> 'breaker' = 'mail' order by id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(causes, [("breaker_opened".to_owned(), "2 failures in a row".to_owned())]);

    // a process that comes later begins with what the others know
    let there = other.dependency("mail", Reach::Fleet, &brittle()).unwrap();
    exchanges.spawn(other.clone().exchange(database.pool.clone(), "other/0#1".to_owned(), stop.clone()));
    let learned = async {
        while there.phase() != Phase::Open {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, learned).await.expect("it learns of the opening");
    let refused = there.call("acme", None, async { Ok::<_, Down>(()) }, |Down| true).await;
    assert!(matches!(refused, Err(Unanswered::Open { .. })), "{refused:?}");

    // the other one finds it well again, and both go on
    there.breaker().reset("test");
    let closed = async {
        loop {
            // any call looks whether there is news to tell
            let _ = there.call("acme", None, async { Ok::<_, Down>(()) }, |Down| true).await;
            if here.phase() == Phase::Closed {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the end of the opening is told");
    stop.cancel();
    while exchanges.join_next().await.is_some() {}
}

/// A call of tenant `slow` that is under way until it is told to end.
async fn slow_call(dependency: &Dependency) -> (JoinSet<()>, Arc<Notify>) {
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut calls = JoinSet::new();
    let (begin, ended, slow) = (Arc::clone(&begun), Arc::clone(&end), dependency.clone());
    calls.spawn(async move {
        let call = async {
            begin.notify_one();
            ended.notified().await;
            Ok::<_, Down>(())
        };
        slow.call("slow", None, call, |Down| true).await.unwrap();
    });
    begun.notified().await;
    (calls, end)
}

#[tokio::test]
async fn slow_calls_of_one_tenant_leave_room_for_another() {
    let bulkhead = BulkheadSettings { concurrent: 2, waiting: 1, patience: Duration::from_millis(50), per_tenant: 1 };
    let settings = DependencySettings { bulkhead, ..DependencySettings::default() };
    let dependency = Dependency::alone("mail", &settings).unwrap();
    let (mut calls, end) = slow_call(&dependency).await;
    let second = dependency.call("slow", None, async { Ok::<_, Down>(()) }, |Down| true).await;
    assert!(matches!(second, Err(Unanswered::Full(_))), "{second:?}");
    dependency.call("quick", None, async { Ok::<_, Down>(()) }, |Down| true).await.unwrap();
    end.notify_one();
    calls.join_next().await.unwrap().unwrap();
    dependency.call("slow", None, async { Ok::<_, Down>(()) }, |Down| true).await.unwrap();
}

#[tokio::test]
async fn call_that_hangs_is_given_up_with_the_time_of_its_caller() {
    let breaker =
        BreakerSettings { consecutive_failures: 1, slow_call: Duration::from_millis(20), ..BreakerSettings::default() };
    let settings = DependencySettings { breaker, ..DependencySettings::default() };
    let dependency = Dependency::alone("mail", &settings).unwrap();
    let hang = std::future::pending::<Result<(), Down>>;
    let hasty = Budget::new(Clock::system(), Duration::from_millis(1));
    let given_up = dependency.call("acme", Some(&hasty), hang(), |Down| true).await;
    assert!(matches!(given_up, Err(Unanswered::TookTooLong { .. } | Unanswered::NoTime)), "{given_up:?}");
    assert_eq!(dependency.phase(), Phase::Closed, "a caller without time says nothing about it");
    // on a machine that stands still its time may be over before the call begins, and then it says nothing about it either
    let blamed = async {
        while dependency.phase() == Phase::Closed {
            let patient = Budget::new(Clock::system(), Duration::from_millis(40));
            let given_up = dependency.call("acme", Some(&patient), hang(), |Down| true).await;
            assert!(matches!(given_up, Err(Unanswered::TookTooLong { .. } | Unanswered::NoTime)), "{given_up:?}");
        }
    };
    tokio::time::timeout(PATIENCE, blamed).await.expect("a caller that waited long enough blames it");
    assert_eq!(dependency.phase(), Phase::Open);
    let over = Budget::new(Clock::system(), Duration::ZERO);
    dependency.breaker().reset("test");
    let late = dependency.call("acme", Some(&over), async { Ok::<_, Down>(()) }, |Down| true).await;
    assert!(matches!(late, Err(Unanswered::NoTime)), "{late:?}");
}

#[tokio::test]
async fn follow_up_has_no_more_time_than_its_parent() {
    let running = Running::start(true, pace()).await;
    let limited = running.send_with("effect", |message| message.ttl_ms = Some(120_000)).await;
    let unlimited = running.send("effect").await;
    for id in [limited, unlimited] {
        running.until(id, |task| task.steps.len() == 2).await;
    }
    let left = "select extract(epoch from child.expires_at - parent.expires_at)::double precision
                  from public.agent_messages parent
                  join public.agent_messages child on child.parent_id = parent.id where parent.id = $1";
    let of = async |id: Uuid| -> Option<f64> {
        sqlx::query_scalar(left).bind(id).fetch_one(running.bus.pool()).await.unwrap()
    };
    let beyond = of(limited).await.expect("it has an end as well");
    assert!(beyond.abs() < 60.0, "{beyond} s");
    assert_eq!(of(unlimited).await, None);
    drop(running.finish().await);
}

/// Asks something that is well behind a circuit that a test opens and closes.
#[derive(Clone)]
struct Asking(Dependency);

impl Handler for Asking {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _: Value, claim: &Claim) -> Result<Value, HandlerError> {
        let asked = claim.call(&self.0, async { Ok::<_, Down>(json!({})) }, |Down| true).await;
        asked.map_err(|unanswered| match unanswered.or_retry(self.0.name()) {
            Ok(down) => HandlerError::reject(down),
            Err(not_asked) => not_asked,
        })
    }
}

/// Messages, claims of them, and claims that were given back.
async fn claims(pool: &PgPool) -> (i64, i64, i64) {
    let counts = "select count(*), coalesce(sum(attempts), 0), coalesce(sum(released), 0) from public.agent_messages";
    sqlx::query_as(counts).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn open_circuit_costs_no_attempts_and_few_claims() {
    const MESSAGES: i64 = 200;
    let database = cogo_test_support::database().await;
    let pool = database.pool.clone();
    let dependency = Dependency::alone("mail", &brittle()).unwrap();
    dependency.breaker().trip("test");
    let asking = Asking(dependency.clone());
    let running = Running::start_with(database, pool.clone(), true, pace(), |_| asking);
    let message =
        NewMessage { max_attempts: Some(1), ..NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({})) };
    let messages = vec![message; usize::try_from(MESSAGES).unwrap()];
    let begun = Instant::now();
    running.bus.enqueue_many(&messages).await.unwrap();
    let refused = async {
        // more than were in hand at once, so the worker has claimed again meanwhile
        while claims(&pool).await.2 < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("messages are handed back");
    let (_, _, given_back) = claims(&pool).await;
    assert!(given_back < 20, "{given_back} claims for nothing");
    // the four that were in hand together lead to a pause of 0.8 s, and the fifth to one twice as long
    let least = Duration::from_millis(2_400);
    assert!(begun.elapsed() >= least, "the worker claimed again without a pause");

    dependency.breaker().reset("test");
    let done = async {
        loop {
            sqlx::query("update bus.delayed set due = clock_timestamp()").execute(&pool).await.unwrap();
            let open = "select count(*) from public.agent_messages where status in ('queued', 'claimed')";
            if sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await.unwrap() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, done).await.expect("all are worked on once the circuit is closed");
    let (all, claimed, given_back) = claims(&pool).await;
    assert_eq!((all, claimed - given_back), (MESSAGES, MESSAGES), "one attempt for each");
    let done: i64 = sqlx::query_scalar("select count(*) from public.agent_messages where status = 'done'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(done, MESSAGES);
    drop(running.finish().await);
}

#[tokio::test]
async fn full_bulkhead_costs_no_attempt() {
    let bulkhead = BulkheadSettings { concurrent: 1, waiting: 0, patience: Duration::ZERO, per_tenant: 1 };
    let settings = DependencySettings { bulkhead, ..DependencySettings::default() };
    let dependency = Dependency::alone("mail", &settings).unwrap();
    let (mut calls, end) = slow_call(&dependency).await;
    let database = cogo_test_support::database().await;
    let pool = database.pool.clone();
    let asking = Asking(dependency.clone());
    let running = Running::start_with(database, pool.clone(), true, pace(), |_| asking);
    let id = running.send_with("", |message| message.max_attempts = Some(1)).await;
    let waiting = running.until(id, |task| task.steps[0].error.is_some()).await;
    assert!(waiting.steps[0].error.as_deref().unwrap().contains("No room"), "{waiting:?}");
    end.notify_one();
    calls.join_next().await.unwrap().unwrap();
    assert_eq!(running.ended(id).await.status, TaskStatus::Done);
    drop(running.finish().await);
}
