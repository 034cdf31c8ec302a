//! The task that keeps a process's copy of the registry current.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    types::Json,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    change::Change,
    reading::{self, BeatLoad, News, Whole},
    registry::{Error, Registry},
    snapshot::Snapshot,
    standing::{Heard, Member},
    view::{Published, View, ViewSettings},
};

/// The channel on which each change of membership tells its version.
const CHANNEL: &str = "registry_changed";

/// Follows the registry, over a connection of its own or a lent pool: by notifications, by the versions that beats tell
/// of, by looking every few seconds, and by starting over whenever the connection was lost.
#[derive(Debug)]
pub struct Follower {
    view: View,
    options: PgConnectOptions,
    /// Instead of a connection of its own.
    lent: Option<PgPool>,
    heard: Option<watch::Receiver<Option<Heard>>>,
    /// Snapshots that readers may still hold: freed here, so that no lookup pays for it.
    retired: Vec<Arc<Published>>,
}

/// It asks at least once in so many of the times after which a copy is confirmed, whatever beats tell.
const SPARED: u32 = 5;

/// Why the follower looks up from waiting.
enum Reason {
    Change,
    Confirm,
    Loads,
}

impl Follower {
    /// Prepares the task and the handle on its copy; nothing is read before [`run`](Self::run).
    #[must_use]
    pub fn new(registry: &Registry, settings: ViewSettings) -> (Self, View) {
        let milliseconds = settings.deadline.as_millis().max(1);
        let options = registry.pool().connect_options().as_ref().clone().options([("statement_timeout", milliseconds)]);
        let view = View::new(settings);
        (Self { view: view.clone(), options, lent: None, heard: None, retired: Vec::new() }, view)
    }

    /// Asks by this pool instead of a connection of its own, for a process that has a subscription already: whoever has
    /// it calls [`View::look_again`] when it hears of a change, and when it was opened anew.
    #[must_use]
    pub fn over(mut self, pool: PgPool) -> Self {
        self.lent = Some(pool);
        self
    }

    /// Also heeds the version that each answer to a beat of this member carries.
    #[must_use]
    pub fn fed_by(mut self, member: &Member) -> Self {
        self.heard = Some(member.heard());
        self
    }

    /// Follows until the token is cancelled. No failure of the database ends it; lookups are refused once the copy is
    /// too old.
    pub async fn run(mut self, token: CancellationToken) {
        let settings = self.view.0.settings.clone();
        let mut pause = settings.reconnect.0;
        loop {
            let broken = tokio::select! {
                () = token.cancelled() => return,
                broken = self.follow(&mut pause) => broken,
            };
            warn!(error = %Causes(&broken), retry_ms = pause.as_millis(), "following the registry broke off");
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(settings.reconnect.1);
        }
    }

    async fn follow(&mut self, pause: &mut Duration) -> Error {
        match self.follow_until_broken(pause).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn follow_until_broken(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, Error> {
        let mut line = match self.lent.clone() {
            Some(pool) => Line::Lent(pool),
            None => Line::Own(Box::new(self.connect().await?)),
        };
        // listening first: what changes from here on is told, what changed before is read now
        let ViewSettings { deadline, confirm_within, .. } = self.view.0.settings;
        let mut asked = self.catch_up(&mut line, deadline).await?;
        self.read_loads(&mut line, deadline).await?;
        let mut loads_read = Instant::now();
        *pause = self.view.0.settings.reconnect.0;
        info!(version = self.view.version(), "following the registry");
        loop {
            match self.wait(&mut line, asked, loads_read).await? {
                Reason::Change | Reason::Confirm => asked = self.catch_up(&mut line, confirm_within).await?,
                Reason::Loads => {
                    self.view.0.loads_wanted.store(false, Ordering::Relaxed);
                    self.read_loads(&mut line, confirm_within).await?;
                    loads_read = Instant::now();
                }
            }
        }
    }

    async fn connect(&self) -> Result<PgListener, Error> {
        let one = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(self.view.0.settings.deadline)
            .connect_lazy_with(self.options.clone());
        let mut listener = PgListener::connect_with(&one).await.map_err(Error::Database)?;
        // a silent reconnect would hide the gap that has to be caught up
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await.map_err(Error::Database)?;
        Ok(listener)
    }

    async fn wait(&mut self, line: &mut Line, asked: Instant, loads_read: Instant) -> Result<Reason, Error> {
        let settings = &self.view.0.settings;
        loop {
            // beats spare the question, but only the answer to it tells the time
            let confirm_at =
                (self.view.0.confirmed() + settings.confirm_every).min(asked + settings.confirm_every * SPARED);
            let loads_at = loads_read + settings.load_every;
            let loads = async {
                tokio::time::sleep_until(loads_at.into()).await;
                while !self.view.0.loads_wanted.load(Ordering::Relaxed) {
                    self.view.0.load_wish.notified().await;
                }
            };
            tokio::select! {
                told = line.told() => {
                    // several changes are often read at once, and then most of the notifications are old news
                    if told?.is_some_and(|version| version > self.view.version()) {
                        return Ok(Reason::Change);
                    }
                }
                () = self.view.0.heard.notified() => return Ok(Reason::Change),
                heard = next_heard(&mut self.heard) => {
                    self.view.heard_of(heard.registry_version, heard.asked);
                }
                () = tokio::time::sleep_until(confirm_at.into()) => return Ok(Reason::Confirm),
                () = loads => return Ok(Reason::Loads),
            }
        }
    }

    /// Brings the copy to the newest version, of which the database has to tell `within` so long; answers when it was asked.
    async fn catch_up(&mut self, line: &mut Line, within: Duration) -> Result<Instant, Error> {
        let shared = Arc::clone(&self.view.0);
        let asked = Instant::now();
        let current = shared.current.load_full();
        let newer = if current.snapshot.version() == 0 {
            None
        } else {
            let most = shared.settings.most_changes;
            let news = in_time(within, line.changes(current.snapshot.version(), most)).await?;
            shared.saw_time(news.database_time, asked);
            if news.registry_version == current.snapshot.version() {
                shared.confirm(asked);
                return Ok(asked);
            }
            advanced(&current.snapshot, news.registry_version, &news.changes)
        };
        let (snapshot, asked) = match newer {
            Some(snapshot) => (snapshot, asked),
            None => {
                // the log has been shortened, or the copy is too far behind, or ahead of a restored database
                let asked = Instant::now();
                let whole = in_time(shared.settings.deadline, line.whole(&current.snapshot)).await?;
                shared.saw_time(whole.database_time, asked);
                debug!(version = whole.snapshot.version(), agents = whole.snapshot.len(), "read the whole registry");
                (whole.snapshot, asked)
            }
        };
        drop(current);
        self.retired.push(shared.publish(snapshot, asked));
        self.retired.retain(|old| Arc::strong_count(old) > 1);
        Ok(asked)
    }

    async fn read_loads(&self, line: &mut Line, within: Duration) -> Result<(), Error> {
        let loads = in_time(within, line.loads()).await?;
        let current = self.view.0.current.load_full();
        let mut carried: HashMap<String, u32> = HashMap::new();
        for BeatLoad { instance_id, ready, in_flight, carried: Json(of_process) } in loads {
            if let Some(entry) = current.snapshot.run(instance_id) {
                entry.load.saw(u32::try_from(in_flight).unwrap_or(0), ready);
            }
            carried.extend(of_process);
        }
        for (instance, in_flight) in carried {
            if let Some(entry) = current.snapshot.owner(&instance) {
                entry.load.saw(in_flight, true);
            }
        }
        Ok(())
    }
}

/// Where the registry is read, and whether changes are told there.
enum Line {
    Own(Box<PgListener>),
    Lent(PgPool),
}

impl Line {
    /// The version that a notification tells of, if it can be read; never over a lent pool.
    async fn told(&mut self) -> Result<Option<i64>, Error> {
        let Self::Own(listener) = self else { return std::future::pending().await };
        match listener.try_recv().await.map_err(Error::Database)? {
            Some(told) => Ok(told.payload().parse().ok()),
            None => Err(Error::Database(sqlx::Error::PoolClosed)),
        }
    }

    async fn changes(&mut self, after: i64, most: u32) -> Result<News, Error> {
        match self {
            Self::Own(listener) => reading::changes(&mut **listener, after, most).await,
            Self::Lent(pool) => reading::changes(&*pool, after, most).await,
        }
    }

    async fn whole(&mut self, known: &Snapshot) -> Result<Whole, Error> {
        match self {
            Self::Own(listener) => reading::whole(&mut **listener, known).await,
            Self::Lent(pool) => reading::whole(&*pool, known).await,
        }
    }

    async fn loads(&mut self) -> Result<Vec<BeatLoad>, Error> {
        match self {
            Self::Own(listener) => reading::loads(&mut **listener).await,
            Self::Lent(pool) => reading::loads(&*pool).await,
        }
    }
}

/// The snapshot that the changes lead to, if they lead to that version without a gap.
fn advanced(snapshot: &Snapshot, version: i64, changes: &[Change]) -> Option<Snapshot> {
    if version < snapshot.version() {
        return None;
    }
    let mut newer = snapshot.clone();
    match newer.apply(changes) {
        Ok(()) if newer.version() == version => Some(newer),
        Ok(()) => None,
        Err(gap) => {
            debug!(%gap, "the log has a gap");
            None
        }
    }
}

async fn next_heard(heard: &mut Option<watch::Receiver<Option<Heard>>>) -> Heard {
    if let Some(receiver) = heard {
        while receiver.changed().await.is_ok() {
            if let Some(heard) = *receiver.borrow_and_update() {
                return heard;
            }
        }
    }
    // the member is gone: notifications and looking every few seconds remain
    *heard = None;
    std::future::pending().await
}

async fn in_time<T>(within: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(within, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Database(sqlx::Error::PoolTimedOut)),
    }
}

struct Causes<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(formatter, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a busy machine stands still.
    const CONFIRM_EVERY: Duration = Duration::from_secs(1);
    /// Between two beats.
    const BEAT: Duration = Duration::from_millis(20);

    /// One who follows by nothing but beats, which come from the sender; it never gets as far as asking the database.
    fn fed() -> (Follower, Line, watch::Sender<Option<Heard>>) {
        let pool = PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new());
        let hour = Duration::from_secs(3600);
        let settings = ViewSettings {
            confirm_every: CONFIRM_EVERY,
            max_staleness: hour,
            load_every: Duration::ZERO,
            ..ViewSettings::default()
        };
        let (mut follower, view) = Follower::new(&Registry::new(pool.clone()), settings);
        view.0.publish(Snapshot::default(), Instant::now());
        let (beats, heard) = watch::channel(None);
        follower.heard = Some(heard);
        (follower, Line::Lent(pool), beats)
    }

    /// Beats that tell of the version of the copy, for so long.
    async fn beat(beats: &watch::Sender<Option<Heard>>, over: Duration) {
        let end = Instant::now() + over;
        while Instant::now() < end {
            let told = Heard { registry_version: 0, config_version: None, schema_version: None, asked: Instant::now() };
            beats.send_replace(Some(told));
            tokio::time::sleep(BEAT).await;
        }
    }

    #[tokio::test]
    async fn without_beats_the_copy_is_confirmed_by_a_question() {
        let (mut follower, mut line, _beats) = fed();
        let asked = Instant::now();
        let reason = follower.wait(&mut line, asked, asked).await.unwrap();
        assert!(matches!(reason, Reason::Confirm));
        assert!((CONFIRM_EVERY / 2..CONFIRM_EVERY * SPARED).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn beats_spare_the_question_until_the_time_has_to_be_asked() {
        let (mut follower, mut line, beats) = fed();
        let asked = Instant::now();
        let reason = tokio::select! {
            reason = follower.wait(&mut line, asked, asked) => reason.unwrap(),
            () = beat(&beats, CONFIRM_EVERY * SPARED * 4) => panic!("the time is never asked"),
        };
        assert!(matches!(reason, Reason::Confirm));
        assert!(asked.elapsed() >= CONFIRM_EVERY * SPARED, "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn a_reading_of_loads_does_not_undo_what_beats_have_spared() {
        let (mut follower, mut line, beats) = fed();
        let asked = Instant::now();
        tokio::select! {
            _ = follower.wait(&mut line, asked, asked) => panic!("beats spare the question"),
            () = beat(&beats, CONFIRM_EVERY * 2) => {}
        }
        follower.view.0.loads_wanted.store(true, Ordering::Relaxed);
        for expected in ["loads", "question"] {
            let reason = match follower.wait(&mut line, asked, asked).await.unwrap() {
                Reason::Loads => "loads",
                Reason::Confirm => "question",
                Reason::Change => "change",
            };
            assert_eq!(reason, expected);
            follower.view.0.loads_wanted.store(false, Ordering::Relaxed);
        }
        assert!(asked.elapsed() > CONFIRM_EVERY * 5 / 2, "{:?}", asked.elapsed());
    }
}
