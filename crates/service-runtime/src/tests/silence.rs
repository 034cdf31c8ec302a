//! A database whose connections stay open and say nothing any more.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cogo_bus_core::{Bus, ClaimRequest};
use cogo_db::PoolSettings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

use super::*;
use crate::{
    leases::Leases,
    pulse::{Pulse, Pulses},
};

/// Short enough for a test, long enough for an answer of a busy machine.
const SHORT: Duration = Duration::from_millis(700);

/// Passes bytes on until told to be silent; what connects later is served again.
struct Proxy {
    address: SocketAddr,
    silenced: watch::Sender<u32>,
    /// Whether new connections are passed on.
    open: watch::Sender<bool>,
}

impl Proxy {
    async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silenced, open) = (watch::Sender::new(0), watch::Sender::new(true));
        let (silence, mut is_open) = (silenced.subscribe(), open.subscribe());
        let tracker = TaskTracker::new();
        let passing = tracker.clone();
        tracker.spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let _ = is_open.wait_for(|&open| open).await;
                let Ok(to) = TcpStream::connect(&target).await else { continue };
                let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                passing.spawn(pass(from_read, to_write, silence.clone()));
                passing.spawn(pass(to_read, from_write, silence.clone()));
            }
        });
        Self { address, silenced, open }
    }

    /// Nothing passes on any connection that is open now, for ever, and none is opened until `reopen`.
    fn silence(&self) {
        self.open.send_replace(false);
        self.silenced.send_modify(|times| *times += 1);
    }

    fn reopen(&self) {
        self.open.send_replace(true);
    }

    /// A pool by way of the proxy.
    fn pool(&self, url: &str) -> PgPool {
        let (start, rest) = url.rsplit_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        let mut settings = PoolSettings::new(format!("{start}@{}/{database}", self.address), "test");
        settings.acquire_timeout = SHORT;
        settings.statement_timeout = Some(Duration::from_secs(5));
        cogo_db::connect(&settings).unwrap()
    }
}

/// Both ends stay open in a silence, as behind a router that forgot the connection.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut silence: watch::Receiver<u32>) {
    silence.mark_unchanged();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = tokio::select! {
            biased;
            _ = silence.changed() => std::future::pending().await,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn proxied() -> (TestDatabase, Proxy, PgPool) {
    let database = cogo_test_support::database().await;
    let target = database.url.rsplit_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let proxy = Proxy::start(target).await;
    let pool = proxy.pool(&database.url);
    (database, proxy, pool)
}

fn short_pace() -> Pace {
    // a lease that a busy machine does not outlast between two steps, or the message would rightly run twice
    Pace { poll: Duration::from_millis(200), lease: Duration::from_secs(15), patience: SHORT, ..pace() }
}

/// Waits for the end of a task; a claim whose answer was lost lapses meanwhile, as the reclaimer would see to.
async fn reclaimed_until_ended(running: &Running, id: Uuid) -> Task {
    let started = Instant::now();
    loop {
        running.bus.reclaim(10).await.unwrap();
        let task = running.bus.task(id).await.unwrap().unwrap();
        if task.status.is_terminal() {
            return task;
        }
        assert!(started.elapsed() < 3 * PATIENCE, "the worker does not recover");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn worker_recovers_from_a_silent_database_and_the_message_is_done_once() {
    let (database, proxy, pool) = proxied().await;
    let running = Running::start_on(database, pool, false, short_pace());
    let before = running.send("answer").await;
    reclaimed_until_ended(&running, before).await;
    proxy.silence();
    let during = running.send("answer").await;
    tokio::time::sleep(SHORT * 3).await;
    proxy.reopen();
    let task = reclaimed_until_ended(&running, during).await;
    assert_eq!(task.status, TaskStatus::Done);
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 2, "one call for each message");
    drop(running.finish().await);
}

#[tokio::test]
async fn hard_stop_ends_a_worker_whose_database_is_silent() {
    let (database, proxy, pool) = proxied().await;
    let running = Running::start_on(database, pool, false, Pace { patience: 10 * PATIENCE, ..short_pace() });
    let hanging = running.send("hang").await;
    running.until(hanging, |task| task.status == TaskStatus::Running).await;
    proxy.silence();
    // several polls, so that the worker waits for the answer to a claim when it is stopped
    tokio::time::sleep(SHORT).await;
    let ended = tokio::time::timeout(PATIENCE / 2, running.finish()).await;
    drop(ended.expect("the worker waits for its database"));
}

#[tokio::test]
async fn lease_that_cannot_be_extended_is_given_up_in_time() {
    let (database, proxy, pool) = proxied().await;
    let bus = Bus::new(database.pool.clone());
    let tenant = Tenant::new("acme").unwrap();
    bus.enqueue(&NewMessage::new(ROUTE, Some(tenant), json!({}))).await.unwrap();
    let lease = Duration::from_secs(2);
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 1, lease };
    let claimed = bus.claim(&request).await.unwrap().remove(0);
    let by_proxy = Bus::new(pool);
    // a connection that is open when the silence begins; a busy machine may take longer for it than the pool has patience
    while by_proxy.task(claimed.id).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (leases, stop) = (Arc::new(Leases::default()), CancellationToken::new());
    let token = Arc::<CancellationToken>::default();
    leases.add(
        std::iter::once((claimed.fence(), Arc::clone(&token))),
        &"w".into(),
        tokio::time::Instant::now() + lease,
    );
    proxy.silence();
    let pulse: Arc<Pulse> = Pulses::default().add("test".to_owned(), lease);
    let keeping = {
        let (leases, stop) = (Arc::clone(&leases), stop.clone());
        TaskTracker::new().spawn(async move { leases.keep(&by_proxy, lease, &pulse, &stop).await })
    };
    tokio::time::timeout(PATIENCE, token.cancelled()).await.expect("the work goes on without a lease");
    stop.cancel();
    tokio::time::timeout(PATIENCE, keeping).await.expect("the keeper hangs").unwrap();
}
