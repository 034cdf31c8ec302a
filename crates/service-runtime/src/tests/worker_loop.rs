//! What handlers do to the worker loop, and what happens to their messages.

use super::*;

#[tokio::test]
async fn message_is_handled_and_its_reply_recorded() {
    let running = Running::start(true, pace()).await;
    let id = running.send("answer").await;
    let task = running.ended(id).await;
    assert_eq!((task.status, task.result), (TaskStatus::Done, Some(json!({"answer": "acme"}))));
    assert!(task.steps[0].claimed_by.as_deref().unwrap().starts_with("test-work/0#"));
    drop(running.finish().await);
}

#[tokio::test]
async fn handler_that_panics_costs_its_message_and_not_the_worker() {
    let running = Running::start(true, pace()).await;
    let poison = running.send_with("panic", |message| message.max_attempts = Some(1)).await;
    assert_eq!(running.ended(poison).await.error.as_deref(), Some("handler panicked: as ordered"));
    let good = running.send("answer").await;
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn message_that_no_attempt_can_mend_is_a_dead_letter_at_once() {
    let running = Running::start(true, pace()).await;
    for (what, reason) in [("reject", "as ordered"), ("too large", "result at most 1 mib")] {
        let id = running.send(what).await;
        let task = running.ended(id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1));
        assert!(task.error.as_deref().unwrap().contains(reason), "{task:?}");
    }
    for (payload, reason) in [
        (json!({"whatt": 1}), "payload does not parse"),
        (json!({"what": "answer", "__assignment": {"ttl_ms": -1}}), "__assignment does not parse"),
        (json!({"what": "answer", "__assignment": {"budget": {"maxCostUsd": -0.1}}}), "maxCostUsd"),
    ] {
        let id = running.send_with("", |message| message.payload = payload).await;
        assert!(running.ended(id).await.error.as_deref().unwrap().contains(reason));
    }
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 2, "what does not parse reaches no handler");
    drop(running.finish().await);
}

#[tokio::test]
async fn ttl_ends_what_is_running_and_what_is_late_is_not_started() {
    let running = Running::start(true, pace()).await;
    let reason = |task: Task| task.error.unwrap();
    let (unstarted, begun) =
        ("time to live passed before it was started", "time to live passed while it was worked on");
    let to_be_late = |message: &mut NewMessage| (message.ttl_ms, message.delay_ms) = (Some(1), Some(3_600_000));
    let late = running.send_with("answer", to_be_late).await;
    assert_eq!(reason(running.ended(late).await), unstarted);
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 0);
    // on a machine that stands still its time may pass before anybody begins with it
    while running.handler.calls.load(Ordering::SeqCst) == 0 {
        let hanging = running.send_with("hang", |message| message.ttl_ms = Some(1_000)).await;
        let told = reason(running.ended(hanging).await);
        let was_called = running.handler.calls.load(Ordering::SeqCst) == 1;
        assert_eq!(told, if was_called { begun } else { unstarted });
    }
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 1);
    drop(running.finish().await);
}

#[tokio::test]
async fn lost_notification_costs_a_poll_and_not_the_message() {
    let running = Running::start(false, Pace { poll: Duration::from_millis(200), ..pace() }).await;
    // nothing wakes it but its poll: with a longer one nobody would wait for the end
    let id = running.send("answer").await;
    assert_eq!(running.ended(id).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn cancelled_message_frees_the_worker() {
    let running = Running::start(true, Pace { concurrency: 1, ..pace() }).await;
    let hanging = running.send("hang").await;
    running.until(hanging, |task| task.status == TaskStatus::Running).await;
    assert_eq!(running.bus.cancel(hanging).await.unwrap(), 1);
    let next = running.send("answer").await;
    assert_eq!(running.ended(next).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn worker_never_holds_more_than_its_concurrency() {
    let running = Running::start(true, Pace { concurrency: 2, ..pace() }).await;
    let first = running.send("hang").await;
    for _ in 0..5 {
        running.send("hang").await;
    }
    running.until(first, |task| task.status == TaskStatus::Running).await;
    let held = "select count(*) from public.agent_messages where status = 'claimed'";
    let started = Instant::now();
    loop {
        let count: i64 = sqlx::query_scalar(held).fetch_one(running.bus.pool()).await.unwrap();
        assert!(count <= 2, "{count} held");
        if count == 2 && started.elapsed() > Duration::from_millis(300) {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn shutdown_hands_back_what_is_not_finished() {
    let running = Running::start(true, pace()).await;
    let id = running.send("hang").await;
    running.until(id, |task| task.status == TaskStatus::Running).await;
    let bus = running.bus.clone();
    let database = running.finish().await;
    let (status, attempts, released): (String, i16, i16) =
        sqlx::query_as("select status, attempts, released from public.agent_messages")
            .fetch_one(bus.pool())
            .await
            .unwrap();
    // a claim that was under way at the stop may have taken it once more
    assert_eq!((status.as_str(), released), ("queued", attempts));
    assert!(attempts >= 1);
    drop(database);
}

#[tokio::test]
async fn effects_and_follow_ups_stand_with_the_completion() {
    let running = Running::start(true, pace()).await;
    let id = running.send("effect").await;
    let task = running.until(id, |task| task.steps.len() == 2).await;
    assert_eq!(task.steps[1].parent_id, Some(id));
    let effects: i64 = sqlx::query_scalar("select count(*) from public.bus_events where kind = 'effect'")
        .fetch_one(running.bus.pool())
        .await
        .unwrap();
    assert_eq!(effects, 1);
    drop(running.finish().await);
}

#[tokio::test]
async fn broken_connections_in_the_middle_lose_nothing() {
    let running = Running::start(true, Pace { poll: Duration::from_millis(500), ..pace() }).await;
    let mut ids = Vec::new();
    for round in 0..20 {
        ids.push(running.send("answer").await);
        if round % 5 == 0 {
            let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                        where datname = current_database() and pid <> pg_backend_pid()";
            // the cut may also hit this very pool
            let _ = sqlx::query(cut).execute(running.bus.pool()).await;
        }
    }
    for id in ids {
        let task = running.ended(id).await;
        assert_eq!(task.status, TaskStatus::Done);
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn many_messages_at_once_are_each_completed_once() {
    let running = Running::start(true, Pace { concurrency: 64, ..pace() }).await;
    let tenant = Tenant::new("acme").unwrap();
    let mut messages: Vec<NewMessage> =
        (0..500).map(|_| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"what": "answer"}))).collect();
    // one whose completion is refused among those that are gathered with it
    messages[250].payload = json!({"what": "too large"});
    let ids: Vec<Uuid> = running.bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect();
    for (number, id) in ids.iter().enumerate() {
        let expected = if number == 250 { TaskStatus::Failed } else { TaskStatus::Done };
        let task = running.ended(*id).await;
        assert_eq!((task.status, task.steps[0].attempts), (expected, 1));
    }
    drop(running.finish().await);
}
