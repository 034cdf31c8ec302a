//! Partial results: fenced, in order, once, resumable, announced, gathered.

use std::time::Duration;

use cogo_bus_core::{
    Bus, Claimed, Completion, Error, Failure, Partial, PartialClaim, PartialError, PartialPace, PartialPlace,
    PartialWriter, Wake, WakeUps,
};
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{LEASE, PAUSE, SHORT_LEASE, bus, claim, claim_for, claim_one, message, numbered};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const START: PartialPlace = PartialPlace { attempt: 0, seq: 0 };

fn texts(contents: &[Value]) -> Vec<String> {
    contents.iter().map(Value::to_string).collect()
}

async fn emit(bus: &Bus, claimed: &Claimed, first_seq: i32, contents: &[Value]) -> Result<Option<i32>, Error> {
    bus.emit(&claimed.fence(), "w", first_seq, &texts(contents), LEASE).await
}

async fn read(bus: &Bus, claimed: &Claimed, after: PartialPlace) -> Vec<(i16, i32, Value)> {
    let parts = bus.partials_after(claimed.id, after, 1_000).await.unwrap();
    parts.into_iter().map(|Partial { attempt, seq, content, .. }| (attempt, seq, content)).collect()
}

/// Waits until there are as many parts.
async fn until_stored(bus: &Bus, claimed: &Claimed, count: usize) {
    let stored = async {
        while read(bus, claimed, START).await.len() < count {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, stored).await.expect("they are stored");
}

async fn claimed(bus: &Bus) -> Claimed {
    bus.enqueue(&message(json!({}))).await.unwrap();
    claim_one(bus, "w").await
}

async fn fails(bus: &Bus, claimed: &Claimed, retriable: bool) {
    let failure = Failure { reason: "boom".to_owned(), retriable, retry_after: Some(Duration::ZERO) };
    bus.fail(&claimed.fence(), "w", &failure).await.unwrap().unwrap();
}

#[tokio::test]
async fn parts_are_stored_once_however_often_they_are_sent() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let early = emit(&bus, &claimed, 2, &[json!("before the first")]).await;
    assert!(matches!(&early, Err(Error::Refused { reason, .. }) if reason.ends_with("a gap after 0")), "{early:?}");
    assert_eq!(emit(&bus, &claimed, 1, &[json!("a"), json!({"b": 1})]).await.unwrap(), Some(2));
    assert_eq!(emit(&bus, &claimed, 1, &[json!("a"), json!({"b": 1})]).await.unwrap(), Some(2));
    assert_eq!(emit(&bus, &claimed, 2, &[json!("not this"), json!("c")]).await.unwrap(), Some(3));
    assert_eq!(emit(&bus, &claimed, 1, &[json!("nor this")]).await.unwrap(), Some(3), "the last that is stored");
    let all = read(&bus, &claimed, START).await;
    assert_eq!(all, [(1, 1, json!("a")), (1, 2, json!({"b": 1})), (1, 3, json!("c"))]);
    assert_eq!(read(&bus, &claimed, PartialPlace { attempt: 1, seq: 2 }).await, all[2..]);
    assert_eq!(bus.partials_after(claimed.id, START, 2).await.unwrap().len(), 2);
    let gap = emit(&bus, &claimed, 5, &[json!("late")]).await;
    assert!(matches!(gap, Err(Error::Refused { .. })), "{gap:?}");
}

#[tokio::test]
async fn only_the_holder_with_a_live_lease_may_emit() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let stale = claim_for(&bus, "w", 1, SHORT_LEASE).await.remove(0);
    let one = texts(&[json!(1)]);
    assert_eq!(bus.emit(&stale.fence(), "thief", 1, &one, LEASE).await.unwrap(), None);
    let mut other_attempt = stale.fence();
    other_attempt.attempt += 1;
    assert_eq!(bus.emit(&other_attempt, "w", 1, &one, LEASE).await.unwrap(), None);
    // past the lease by the database's own clock
    sqlx::query("select pg_sleep(0.2)").execute(bus.pool()).await.unwrap();
    assert_eq!(emit(&bus, &stale, 1, &[json!(1)]).await.unwrap(), None);
    bus.reclaim(10).await.unwrap();
    let fresh = claim_one(&bus, "w").await;
    assert_eq!(emit(&bus, &stale, 1, &[json!(1)]).await.unwrap(), None);
    assert_eq!(emit(&bus, &fresh, 1, &[json!(2)]).await.unwrap(), Some(1));
    assert!(bus.complete(&fresh.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(emit(&bus, &fresh, 2, &[json!(3)]).await.unwrap(), None);
    assert_eq!(read(&bus, &fresh, START).await, [(2, 1, json!(2))]);
}

#[tokio::test]
async fn new_attempt_starts_anew_and_shows_it() {
    let (bus, _database) = bus().await;
    let first = claimed(&bus).await;
    emit(&bus, &first, 1, &[json!("one"), json!("two")]).await.unwrap();
    let seen = PartialPlace { attempt: 1, seq: 2 };
    fails(&bus, &first, true).await;
    let second = claim_one(&bus, "w").await;
    assert!(emit(&bus, &second, 3, &[json!("three")]).await.is_err(), "what stands is of another attempt");
    assert_eq!(emit(&bus, &second, 1, &[json!("uno")]).await.unwrap(), Some(1));
    let expected = [(2, 1, json!("uno"))];
    assert_eq!(read(&bus, &second, seen).await, expected, "who read the first attempt meets the second");
    assert_eq!(read(&bus, &second, START).await, expected, "what is void is gone");
}

#[tokio::test]
async fn parts_are_void_once_another_attempt_begins_and_stand_until_then() {
    let (bus, _database) = bus().await;
    let first = claimed(&bus).await;
    emit(&bus, &first, 1, &[json!("one")]).await.unwrap();
    fails(&bus, &first, true).await;
    assert_eq!(read(&bus, &first, START).await, [(1, 1, json!("one"))], "it waits for another attempt");
    let second = claim_one(&bus, "w").await;
    assert_eq!(read(&bus, &first, START).await, []);
    emit(&bus, &second, 1, &[json!("two")]).await.unwrap();
    assert_eq!(bus.release(&[second.fence()], "w").await.unwrap(), 1);
    assert_eq!(read(&bus, &first, START).await, [(2, 1, json!("two"))], "handed back");
    let third = claim_one(&bus, "w").await;
    emit(&bus, &third, 1, &[json!("three")]).await.unwrap();
    fails(&bus, &third, false).await;
    assert_eq!(read(&bus, &first, START).await, [(3, 1, json!("three"))], "a dead letter shows its last attempt");

    let unfinished = claimed(&bus).await;
    emit(&bus, &unfinished, 1, &[json!("void")]).await.unwrap();
    fails(&bus, &unfinished, true).await;
    let silent = claim_one(&bus, "w").await;
    assert!(bus.complete(&silent.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(read(&bus, &silent, START).await, [], "the attempt that completed had none");
}

#[tokio::test]
async fn parts_of_a_message_of_a_large_claim_are_shown() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue_many(&numbered(100)).await.unwrap()[0].id;
    for attempt in 1..=2 {
        // so many that their rows do not tell of the claim yet
        let claimed = claim(&bus, "w", 100).await;
        let one = claimed.iter().find(|claimed| claimed.id == id).unwrap();
        assert_eq!((claimed.len(), one.attempt), (100, attempt));
        emit(&bus, one, 1, &[json!(attempt)]).await.unwrap();
        assert_eq!(read(&bus, one, START).await, [(attempt, 1, json!(attempt))]);
        let fences: Vec<_> = claimed.iter().map(Claimed::fence).collect();
        assert_eq!(bus.release(&fences, "w").await.unwrap(), 100);
        assert_eq!(read(&bus, one, START).await, [(attempt, 1, json!(attempt))]);
    }
}

/// As if that time had passed, which is far more than the lease that it was claimed with.
async fn is_held_after_half_an_hour(bus: &Bus, claimed: &Claimed) {
    sqlx::query("update bus.claims set lease_until = lease_until - interval '30 minutes'")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(bus.reclaim(10).await.unwrap(), 0);
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
}

#[tokio::test]
async fn emitting_renews_the_lease() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let hour = Duration::from_secs(3_600);
    assert_eq!(bus.emit(&claimed.fence(), "w", 1, &texts(&[json!(1)]), hour).await.unwrap(), Some(1));
    is_held_after_half_an_hour(&bus, &claimed).await;
}

#[tokio::test]
async fn emitting_without_a_lease_does_not_shorten_it() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let hour = Duration::from_secs(3_600);
    bus.extend(&[claimed.fence()], "w", hour).await.unwrap();
    let emitted: Option<i32> = sqlx::query_scalar("select bus.emit($1, 'w', $2, 1, '{1}')")
        .bind(claimed.id)
        .bind(claimed.attempt)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(emitted, Some(1));
    is_held_after_half_an_hour(&bus, &claimed).await;
}

#[tokio::test]
async fn too_much_is_refused_and_what_stood_stands() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let large = json!("x".repeat(200_000));
    for seq in 1..=41 {
        assert_eq!(emit(&bus, &claimed, seq, std::slice::from_ref(&large)).await.unwrap(), Some(seq));
    }
    let over = emit(&bus, &claimed, 42, &[large]).await;
    assert!(matches!(&over, Err(Error::Refused { reason, .. }) if reason == "partials at most 8 mib"), "{over:?}");
    let huge = emit(&bus, &claimed, 42, &[json!("x".repeat(300_000))]).await;
    assert!(matches!(&huge, Err(Error::Refused { reason, .. }) if reason == "partial at most 256 kib"), "{huge:?}");
    assert_eq!(emit(&bus, &claimed, 42, &[json!("small")]).await.unwrap(), Some(42));
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
}

#[tokio::test]
async fn parts_are_announced_to_those_who_watch_the_task() {
    let (bus, _database) = bus().await;
    let root = claimed(&bus).await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.run(bus.pool().clone(), stop.clone()));
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::CatchUp);
    emit(&bus, &root, 1, &[json!("nobody watches")]).await.unwrap();
    bus.watch(root.id, "test", PATIENCE).await.unwrap();
    emit(&bus, &root, 2, &[json!("heard")]).await.unwrap();
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::Task(root.id));
    emit(&bus, &root, 2, &[json!("heard")]).await.unwrap();
    // sent again it is no news: the next hint is that of the completion, and there is none after it
    bus.complete(&root.fence(), "w", &Completion::default()).await.unwrap();
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::Task(root.id));
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), Wake::Ready("test/work/0".to_owned()));
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn old_parts_go_once_their_message_has_ended_long_ago() {
    let (bus, _database) = bus().await;
    let hour = Duration::from_secs(3_600);
    let long = claimed(&bus).await;
    emit(&bus, &long, 1, &[json!(1), json!(2)]).await.unwrap();
    let short = claimed(&bus).await;
    emit(&bus, &short, 1, &[json!(1), json!(2)]).await.unwrap();
    let gone = claimed(&bus).await;
    emit(&bus, &gone, 1, &[json!(1)]).await.unwrap();
    sqlx::query("update bus.partials set at = at - interval '1 day'").execute(bus.pool()).await.unwrap();
    // oldest first, so that those which stay would fill the batches
    assert_eq!(bus.retain_partials(hour, 1).await.unwrap(), 0, "all of them go on");
    assert!(bus.complete(&short.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(bus.retain_partials(hour, 1).await.unwrap(), 0, "its end is to be seen with its beginning");
    assert_eq!(bus.retain_partials(Duration::ZERO, 1).await.unwrap(), 1);
    assert_eq!(bus.retain_partials(Duration::ZERO, 10).await.unwrap(), 1);
    sqlx::query("delete from public.agent_messages where id = $1").bind(gone.id).execute(bus.pool()).await.unwrap();
    assert_eq!(bus.retain_partials(hour, 1).await.unwrap(), 1);
    assert_eq!(emit(&bus, &long, 3, &[json!(3)]).await.unwrap(), Some(3), "a worker that goes on for long may");
    assert_eq!(read(&bus, &long, START).await.len(), 3);
}

struct Stream {
    writer: PartialWriter,
    flushing: JoinHandle<()>,
    stop: CancellationToken,
}

fn stream(bus: &Bus, claimed: &Claimed, pace: PartialPace) -> Stream {
    let claim = PartialClaim { fence: claimed.fence(), holder: "w".to_owned(), lease: LEASE };
    let stop = CancellationToken::new();
    let (writer, flusher) = PartialWriter::new(bus.clone(), claim, pace, stop.clone());
    Stream { writer, flushing: TaskTracker::new().spawn(flusher.run()), stop }
}

#[tokio::test]
async fn single_part_does_not_wait_for_others() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let stream = stream(&bus, &claimed, PartialPace::default());
    stream.writer.write(&json!("lonely")).await.unwrap();
    until_stored(&bus, &claimed, 1).await;
}

#[tokio::test]
async fn slow_database_holds_the_writer_back_and_gets_few_large_batches() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let pace = PartialPace { flush_after: Duration::from_millis(1), max_items: 20, ..PartialPace::default() };
    let stream = stream(&bus, &claimed, pace);
    let mut blocker = bus.pool().begin().await.unwrap();
    sqlx::query("lock table bus.partials in share mode").execute(&mut *blocker).await.unwrap();
    let mut written = 0;
    let held = loop {
        let mut write = Box::pin({
            let writer = stream.writer.clone();
            async move { writer.write(&json!(written)).await }
        });
        // a write that has room is done at once or after a turn of the flusher
        match timeout(Duration::from_millis(500), &mut write).await {
            Ok(done) => done.unwrap(),
            Err(_held_back) => break write,
        }
        written += 1;
        assert!(written <= 40, "nothing holds the writer back");
    };
    assert!(read(&bus, &claimed, START).await.is_empty());
    blocker.commit().await.unwrap();
    timeout(PATIENCE, held).await.unwrap().unwrap();
    stream.writer.close().await.unwrap();
    let parts = read(&bus, &claimed, START).await;
    let expected: Vec<_> = (0..=written).map(|number| (1, number + 1, json!(number))).collect();
    assert_eq!(parts, expected);
    let batches: i64 =
        sqlx::query_scalar("select count(distinct xmin::text) from bus.partials").fetch_one(bus.pool()).await.unwrap();
    assert!(batches <= 5, "{written} parts in {batches} batches");
    assert_eq!(stream.writer.write(&json!("late")).await, Err(PartialError::Closed));
    stream.flushing.await.unwrap();
}

#[tokio::test]
async fn bytes_and_flushes_do_not_wait_for_the_clock() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let pace = PartialPace { flush_after: PATIENCE * 100, max_items: 1_000, max_bytes: 10_000 };
    let stream = stream(&bus, &claimed, pace);
    stream.writer.write(&json!("small")).await.unwrap();
    timeout(PATIENCE, stream.writer.flush()).await.unwrap().unwrap();
    assert_eq!(read(&bus, &claimed, START).await.len(), 1);
    stream.writer.write(&json!("x".repeat(10_000))).await.unwrap();
    until_stored(&bus, &claimed, 2).await;
    let too_large = stream.writer.write(&json!("x".repeat(300_000))).await;
    assert!(matches!(too_large, Err(PartialError::Refused(_))), "{too_large:?}");
    // dropping the last writer stores what is left
    stream.writer.write(&json!("last")).await.unwrap();
    drop(stream.writer);
    timeout(PATIENCE, stream.flushing).await.unwrap().unwrap();
    assert_eq!(read(&bus, &claimed, START).await.len(), 3);
}

#[tokio::test]
async fn writer_learns_why_its_stream_ended() {
    let (bus, _database) = bus().await;
    let lost = claimed(&bus).await;
    let stream_of_lost = stream(&bus, &lost, PartialPace::default());
    bus.cancel(lost.root_id).await.unwrap();
    stream_of_lost.writer.write(&json!(1)).await.unwrap();
    assert_eq!(stream_of_lost.writer.flush().await, Err(PartialError::Lost));
    assert_eq!(stream_of_lost.writer.write(&json!(2)).await, Err(PartialError::Lost));

    let held = claimed(&bus).await;
    let stopped = stream(&bus, &held, PartialPace { flush_after: PATIENCE * 100, ..PartialPace::default() });
    stopped.writer.write(&json!(1)).await.unwrap();
    stopped.stop.cancel();
    timeout(PATIENCE, stopped.flushing).await.unwrap().unwrap();
    assert_eq!(stopped.writer.write(&json!(2)).now_or_never(), Some(Err(PartialError::Lost)));
}

/// So that all that is written goes as one batch.
fn together() -> PartialPace {
    PartialPace { flush_after: PATIENCE * 100, max_items: 1_000, max_bytes: usize::MAX }
}

#[tokio::test]
async fn what_the_database_cannot_hold_is_refused_at_once_and_costs_no_other_part() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let stream = stream(&bus, &claimed, together());
    // the second as text is a quarter of what is allowed
    for (guilty, words) in [(json!(["nul\0"]), "\\u0000"), (json!(vec![1; 24_000]), "262144 bytes as jsonb")] {
        stream.writer.write(&json!("before")).await.unwrap();
        let refused = stream.writer.write(&guilty).await;
        assert!(matches!(&refused, Err(PartialError::Refused(why)) if why.contains(words)), "{refused:?}");
        stream.writer.write(&json!("after, and no \\u0000")).await.unwrap();
    }
    stream.writer.write(&json!(vec![1; 20_000])).await.unwrap();
    timeout(PATIENCE, stream.writer.close()).await.unwrap().unwrap();
    assert_eq!(read(&bus, &claimed, START).await.len(), 5);
}

#[tokio::test]
async fn part_that_the_database_refuses_costs_no_other_of_its_batch_and_ends_the_stream() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let stream = stream(&bus, &claimed, together());
    stream.writer.write(&json!(1)).await.unwrap();
    stream.writer.flush().await.unwrap();
    // room for small parts only
    sqlx::query("update bus.partials set total_bytes = 8388608 - 1000").execute(bus.pool()).await.unwrap();
    for part in [json!(2), json!("x".repeat(1_000)), json!(3)] {
        stream.writer.write(&part).await.unwrap();
    }
    let why = timeout(PATIENCE, stream.writer.flush()).await.unwrap();
    assert!(matches!(&why, Err(PartialError::Refused(why)) if why.contains("8 mib")), "{why:?}");
    assert_eq!(stream.writer.write(&json!(4)).await, why);
    assert_eq!(read(&bus, &claimed, START).await, [(1, 1, json!(1)), (1, 2, json!(2)), (1, 3, json!(3))]);
}

#[tokio::test]
async fn parts_survive_connections_that_break_between_send_and_answer() {
    let (bus, _database) = bus().await;
    let claimed = claimed(&bus).await;
    let pace = PartialPace { max_items: 7, ..PartialPace::default() };
    let stream = stream(&bus, &claimed, pace);
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and query like '%bus.emit%' and pid <> pg_backend_pid()";
    for number in 0..200 {
        stream.writer.write(&json!(number)).await.unwrap();
        if number % 20 == 0 {
            sqlx::query_scalar::<_, i64>(cut).fetch_one(bus.pool()).await.unwrap();
        }
    }
    timeout(PATIENCE, stream.writer.close()).await.unwrap().unwrap();
    let expected: Vec<_> = (0..200).map(|number| (1, number + 1, json!(number))).collect();
    assert_eq!(read(&bus, &claimed, START).await, expected);
}
