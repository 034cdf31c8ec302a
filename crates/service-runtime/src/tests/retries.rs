//! What errors of handlers lead to: by their kinds, as the code says and as operators change it.

use std::collections::VecDeque;

use super::*;
use crate::{PANIC, Retry, RetryPolicy, retry::RetryRule};

/// No test waits for it.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(1);

/// Fails as the message says: one kind after the other, then it answers.
struct Failing;

#[derive(Deserialize)]
struct Kinds {
    kinds: VecDeque<String>,
}

impl Handler for Failing {
    const ROUTE: Route = ROUTE;
    type Request = Kinds;
    type Reply = Value;

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
            .on("limited", Retry::exponential(SHORT, SHORT).at_most(3))
            .on("upstream", Retry::after(SHORT))
            .on("asleep", Retry::after(LONG))
            .on("bad", Retry::never())
            .on(PANIC, Retry::after(SHORT).at_most(2))
            .otherwise(Retry::after(SHORT))
    }

    async fn handle(&self, mut request: Kinds, claim: &Claim) -> Result<Value, HandlerError> {
        let number = usize::try_from(claim.attempt() - 1).unwrap();
        let Some(kind) = request.kinds.remove(number) else { return Ok(json!({})) };
        let error = anyhow::anyhow!("as ordered");
        Err(match kind.as_str() {
            "limited" => HandlerError::of_kind("limited", error),
            "limited, told when" => HandlerError::of_kind("limited", error).after(LONG),
            "upstream" => HandlerError::of_kind("upstream", error),
            "asleep" => HandlerError::of_kind("asleep", error),
            "bad" => HandlerError::of_kind("bad", error),
            "unheard of" => HandlerError::of_kind("unheard-of", error),
            "panic" => panic!("as ordered"),
            _ => HandlerError::retry(error),
        })
    }
}

struct Scene(Running);

impl Scene {
    async fn start(rules: &[&str]) -> Self {
        let database = cogo_test_support::database().await;
        let pool = database.pool.clone();
        let rules: Vec<String> = rules.iter().map(|&rule| rule.to_owned()).collect();
        let pace = Pace { retry_rules: RetryRule::parse_all(&rules).unwrap(), ..pace() };
        Self(Running::start_with(database, pool, true, pace, |_| Failing))
    }

    async fn send(&self, kinds: &[&str]) -> Uuid {
        self.0
            .send_with("", |message| {
                message.payload = json!({"kinds": kinds});
                message.max_attempts = Some(10);
            })
            .await
    }

    /// The end of a message that fails so: its status, its attempts and its error.
    async fn end(&self, kinds: &[&str]) -> (TaskStatus, i16, String) {
        let task = self.0.ended(self.send(kinds).await).await;
        (task.status, task.steps[0].attempts, task.error.unwrap_or_default())
    }

    /// How long the bus waits after the first attempt.
    async fn pause(&self, kinds: &[&str]) -> Duration {
        let id = self.send(kinds).await;
        let pause = "select (extract(epoch from m.retry_at - m.last_error_at) * 1000)::bigint
                       from public.agent_messages m where m.id = $1 and m.retry_at is not null";
        let started = Instant::now();
        loop {
            let pause: Option<i64> =
                sqlx::query_scalar(pause).bind(id).fetch_optional(self.0.bus.pool()).await.unwrap();
            if let Some(ms) = pause {
                return Duration::from_millis(ms.unsigned_abs());
            }
            assert!(started.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn each_kind_of_error_has_its_own_number_of_attempts() {
    let scene = Scene::start(&[]).await;
    let (status, attempts, error) =
        scene.end(&["limited", "upstream", "limited", "upstream", "limited", "limited"]).await;
    assert_eq!((status, attempts), (TaskStatus::Failed, 5));
    assert_eq!(error, "limited: as ordered (given up: 3 attempts ended by limited)");
    let (status, attempts, _) = scene.end(&["limited", "upstream", "limited", "", "upstream", "unheard of"]).await;
    assert_eq!((status, attempts), (TaskStatus::Done, 7));
    let (status, attempts, error) = scene.end(&["panic", "upstream", "panic"]).await;
    assert_eq!((status, attempts), (TaskStatus::Failed, 3));
    assert!(error.starts_with("handler panicked: as ordered (given up"), "{error}");
    drop(scene.0.finish().await);
}

#[tokio::test]
async fn kind_that_no_attempt_can_mend_is_a_dead_letter_at_once() {
    let scene = Scene::start(&[]).await;
    assert_eq!(scene.end(&["bad"]).await, (TaskStatus::Failed, 1, "bad: as ordered".to_owned()));
    drop(scene.0.finish().await);
}

#[tokio::test]
async fn pause_is_the_kinds_own_unless_the_error_says_when() {
    let scene = Scene::start(&[]).await;
    for kinds in ["asleep", "limited, told when"] {
        // clocks of one statement: the delay is added to a reading a moment before the one it is compared with
        let off = scene.pause(&[kinds]).await.abs_diff(LONG);
        assert!(off < Duration::from_secs(60), "{kinds}: {off:?}");
    }
    drop(scene.0.finish().await);
}

#[tokio::test]
async fn operators_change_what_the_code_says() {
    let rules = [
        "limited: max=1",
        "bad: retry delay=1ms",
        "test/work/asleep: delay=1ms",
        "test/other/bad: dead-letter",
        "*: max=2",
    ];
    let scene = Scene::start(&rules).await;
    assert_eq!(scene.end(&["limited"]).await.1, 1);
    assert_eq!(scene.end(&["bad", "bad", "asleep"]).await, (TaskStatus::Done, 4, String::new()));
    let (status, attempts, error) = scene.end(&["", ""]).await;
    assert_eq!(
        (status, attempts, error.as_str()),
        (TaskStatus::Failed, 2, "as ordered (given up: 2 attempts ended by an error)")
    );
    drop(scene.0.finish().await);
}
