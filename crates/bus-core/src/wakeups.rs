//! The one realtime subscription of a process: hints that something may have changed, never the change itself.

use std::{io, time::Duration};

use sqlx::{Executor, PgPool, postgres::PgListener};
use tokio::{sync::broadcast, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// First and longest pause before the subscription is opened again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A path that swallows everything is as quiet as one on which nothing happens, so what is quiet is asked; seldom, since an
/// idle process is to cost nothing.
const PULSE: Pulse = Pulse { quiet: Duration::from_secs(30), answer_within: Duration::from_secs(2) };
/// What is asked; to listen once more changes nothing, and `pg_stat_activity` goes on showing this as a subscription.
const SIGN_OF_LIFE: &str = "listen bus_ready";
/// Hints held for a slow receiver; one that lags behind is told to look at everything.
const BACKLOG: usize = 1024;

/// What the subscription hears of; the registry too, so that a process that follows it needs no second one.
const CHANNELS: [&str; 5] = ["bus_ready", "bus_task", "bus_cancel", "bus_broadcast", "registry_changed"];

/// A hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A route (`service/role/shard`) has something to claim.
    Ready(String),
    /// A step of this task changed.
    Task(Uuid),
    /// This message was taken back.
    Cancelled(Uuid),
    /// A topic has a broadcast.
    Broadcast(String),
    /// The registry has this version now.
    Registry(i64),
    /// The subscription was (re)opened: anything may have happened meanwhile.
    CatchUp,
}

/// When the connection of a subscription is asked whether it lives.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    /// After so long without a hint.
    quiet: Duration,
    /// One that has not answered by then is given up.
    answer_within: Duration,
}

/// Hands out the hints of one subscription to any part of the process.
#[derive(Debug, Clone)]
pub struct WakeUps {
    sender: broadcast::Sender<Wake>,
    pulse: Pulse,
}

impl Default for WakeUps {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0, pulse: PULSE }
    }
}

impl WakeUps {
    /// Hints from now on. A receiver that lags gets [`broadcast::error::RecvError::Lagged`]: treat it as a catch-up.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Wake> {
        self.sender.subscribe()
    }

    /// Keeps the subscription open until `stop`, over a connection beside the pool; reconnects with backoff for ever, also
    /// when the connection has been quiet for 30 s and then does not answer within 2 s.
    pub async fn run(self, pool: PgPool, stop: CancellationToken) {
        let mut pause = RECONNECT.0;
        loop {
            let broken = tokio::select! {
                () = stop.cancelled() => return,
                broken = self.listen(&pool, &mut pause) => broken,
            };
            warn!(error = %broken, retry_ms = pause.as_millis(), "realtime subscription broke, polling meanwhile");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    async fn listen(&self, pool: &PgPool, pause: &mut Duration) -> sqlx::Error {
        match pool.close_event().do_until(self.listen_until_broken(&beside(pool), pause)).await {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) | Err(error) => error,
        }
    }

    async fn listen_until_broken(
        &self,
        pool: &PgPool,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        // a silent reconnect would hide the gap that a catch-up must cover
        listener.eager_reconnect(false);
        in_time(pool.options().get_acquire_timeout(), listener.listen_all(CHANNELS)).await?;
        *pause = RECONNECT.0;
        info!("realtime subscription open");
        self.send(Wake::CatchUp);
        loop {
            // given up, it has taken nothing from the connection that it did not hand out
            let Ok(received) = timeout(self.pulse.quiet, listener.try_recv()).await else {
                // hints that come before the answer are kept for the next look
                in_time(self.pulse.answer_within, listener.execute(SIGN_OF_LIFE)).await?;
                continue;
            };
            let Some(notification) = received? else {
                return Err(sqlx::Error::PoolClosed);
            };
            match read(notification.channel(), notification.payload()) {
                Some(wake) => self.send(wake),
                None => warn!(channel = notification.channel(), "ignored a hint that cannot be read"),
            }
        }
    }

    fn send(&self, wake: Wake) {
        // an error only means that nobody is listening right now
        let _ = self.sender.send(wake);
    }
}

/// A pool of one connection like those of `pool`. A listener that is given up takes leave of the server, over a silent path
/// for as long as TCP goes on trying; of a connection of the pool itself nobody else could use the place meanwhile.
fn beside(pool: &PgPool) -> PgPool {
    let options = pool.options().clone().min_connections(0).max_connections(1).max_lifetime(None).idle_timeout(None);
    options.connect_lazy_with(pool.connect_options().as_ref().clone())
}

async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let silent = |_elapsed| Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no sign of life")));
    timeout(limit, answer).await.unwrap_or_else(silent)
}

fn read(channel: &str, payload: &str) -> Option<Wake> {
    match channel {
        "bus_ready" => Some(Wake::Ready(payload.to_owned())),
        "bus_task" => payload.parse().ok().map(Wake::Task),
        "bus_cancel" => payload.parse().ok().map(Wake::Cancelled),
        "bus_broadcast" => Some(Wake::Broadcast(payload.to_owned())),
        "registry_changed" => payload.parse().ok().map(Wake::Registry),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cogo_db::PoolSettings;
    use tokio::{
        io::copy,
        net::{TcpListener, TcpStream},
        sync::watch,
        task::JoinSet,
    };

    use super::*;

    /// Nothing here takes this long unless it is broken, however busy the machine is.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A way to the server; each send silences the connections that are there, and nobody is told.
    async fn way_to(url: &str, tasks: &mut JoinSet<()>) -> (String, watch::Sender<()>) {
        let server = url.split('/').nth(2).unwrap().rsplit('@').next().unwrap().to_owned();
        let incoming = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let through = url.replace(&server, &incoming.local_addr().unwrap().to_string());
        let silence = watch::Sender::new(());
        let silenced = silence.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = incoming.accept().await {
                let (server, mut silenced) = (server.clone(), silenced.subscribe());
                connections.spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    tokio::select! {
                        biased;
                        _ = silenced.changed() => std::future::pending().await,
                        _ = copy(&mut from_client, &mut to_server) => {}
                        _ = copy(&mut from_server, &mut to_client) => {}
                    }
                });
            }
        });
        (through, silence)
    }

    /// A subscription that is open, over one of a pool of one.
    async fn open(url: &str, pulse: Pulse, tasks: &mut JoinSet<()>) -> broadcast::Receiver<Wake> {
        let wakeups = WakeUps { pulse, ..WakeUps::default() };
        let mut hints = wakeups.subscribe();
        let settings = PoolSettings { max_connections: 1, ..PoolSettings::new(url, "quiet") };
        tasks.spawn(wakeups.run(cogo_db::connect(&settings).unwrap(), CancellationToken::new()));
        assert_eq!(next(&mut hints).await, Wake::CatchUp);
        hints
    }

    async fn next(hints: &mut broadcast::Receiver<Wake>) -> Wake {
        timeout(PATIENCE, hints.recv()).await.expect("no hint came").unwrap()
    }

    async fn notify(pool: &PgPool, version: i64) {
        let told = sqlx::query("select pg_notify('registry_changed', $1)").bind(version.to_string());
        told.execute(pool).await.unwrap();
    }

    #[tokio::test]
    async fn connection_that_goes_silent_is_opened_again_with_a_catch_up() {
        let database = cogo_test_support::database().await;
        let mut tasks = JoinSet::new();
        let (through, silence) = way_to(&database.url, &mut tasks).await;
        let pulse = Pulse { quiet: Duration::from_millis(20), answer_within: Duration::from_secs(1) };
        let mut hints = open(&through, pulse, &mut tasks).await;
        for _ in 0..2 {
            silence.send_replace(());
            notify(&database.pool, 1).await;
            while next(&mut hints).await != Wake::CatchUp {}
        }
        let pool = database.pool.clone();
        tasks.spawn(async move {
            loop {
                notify(&pool, 2).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        while next(&mut hints).await != Wake::Registry(2) {}
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn connection_that_is_quiet_and_lives_stays_and_loses_no_hint() {
        let database = cogo_test_support::database().await;
        let mut tasks = JoinSet::new();
        // asked so often that hints come before, during and after the answers
        let pulse = Pulse { quiet: Duration::ZERO, answer_within: PATIENCE };
        let mut hints = open(&database.url, pulse, &mut tasks).await;
        for version in 0..300 {
            notify(&database.pool, version).await;
        }
        for version in 0..300 {
            assert_eq!(next(&mut hints).await, Wake::Registry(version));
        }
        tasks.shutdown().await;
    }

    #[test]
    fn hints_are_read_and_rubbish_is_not() {
        assert_eq!(read("bus_ready", "rag/embed/0"), Some(Wake::Ready("rag/embed/0".to_owned())));
        assert_eq!(read("registry_changed", "17"), Some(Wake::Registry(17)));
        assert_eq!(read("bus_task", "not an id"), None);
        assert_eq!(read("other", ""), None);
    }
}
