//! One round of a storm: clients, proxies between them and Postgres, and what chance does to all of them.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Chance, Cut, Direction, Fault, Hints, How, Point, Proxy, Scene, Start, Trigger};

use super::{Server, Tally, keeper, moment, producer, quick_worker, recovery::Outage, worker};

/// Workers without a proxy, and with one.
const DIRECT_WORKERS: usize = 1;
const PRODUCERS: u64 = 2;
const KEEPERS: usize = 2;
const PROXIES: usize = 2;
/// From one fault to the next, in ms.
const PAUSE_MS: (u64, u64) = (100, 400);
/// One in so many faults is a kill of Postgres.
const POSTGRES_IN: u64 = 25;
/// A client gives a call up after this, so that half-open connections end.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Where workers are killed by their own hand.
const POINTS: [Point; 8] = [
    Point::Claiming,
    Point::Claimed,
    Point::Extending,
    Point::Completing,
    Point::Completed,
    Point::Failing,
    Point::Releasing,
    Point::InTransaction,
];
/// The same of producers.
const SENDING: [Point; 3] = [Point::Enqueueing, Point::Enqueued, Point::InTransaction];

/// A round under way.
pub(super) struct Storming<'a> {
    scene: Scene,
    server: &'a Server,
    lease: Duration,
    chance: &'a mut Chance,
    proxies: Vec<(Proxy, String)>,
    /// A worker that nothing happens to, so that there is always one that could run a message again.
    sound: String,
    /// Stopped workers and when they go on.
    sleepers: Vec<(String, Instant)>,
    outages: Vec<Outage>,
}

impl<'a> Storming<'a> {
    pub(super) async fn begin(
        scene: Scene,
        server: &'a Server,
        lease: Duration,
        chance: &'a mut Chance,
    ) -> anyhow::Result<Self> {
        let mut proxies = Vec::new();
        for _ in 0..PROXIES {
            proxies.push(Proxy::before(&server.url).await?);
        }
        let (sleepers, outages, sound) = (Vec::new(), Vec::new(), String::new());
        let mut storming = Self { scene, server, lease, chance, proxies, sound, sleepers, outages };
        for _ in 0..KEEPERS {
            storming.start(Start::new(keeper()), None).await?;
        }
        storming.sound = storming.start(Start::new(quick_worker(lease)), None).await?;
        for _ in 0..DIRECT_WORKERS {
            storming.start_worker(None).await?;
        }
        for proxy in 0..PROXIES {
            storming.start_worker(Some(proxy)).await?;
        }
        Ok(storming)
    }

    /// Faults until this many messages are sent, those aside that were there before.
    pub(super) async fn blow(
        &mut self,
        messages: u64,
        former: usize,
        tally: &mut Tally,
        progress: &mut impl FnMut(&Tally),
    ) -> anyhow::Result<()> {
        let (before, killed_before) = (tally.messages, tally.clients_killed);
        loop {
            let stored: Result<i64, _> =
                sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(&self.server.pool).await;
            let sent = stored.map_or(0, |stored| stored.unsigned_abs().saturating_sub(former as u64));
            tally.messages = before + sent;
            tally.clients_killed = killed_before + u32::try_from(self.scene.deaths().len()).unwrap_or(u32::MAX);
            progress(tally);
            tally.messages = before;
            if sent >= messages {
                return Ok(());
            }
            self.keep_staffed(messages - sent).await?;
            self.fault(tally).await?;
            let (least, most) = PAUSE_MS;
            tokio::time::sleep(Duration::from_millis(least + self.chance.below(most - least))).await;
        }
    }

    /// Everything flows again, everybody goes on; answers when Postgres was away.
    pub(super) async fn calm(mut self) -> anyhow::Result<(Scene, Vec<Outage>)> {
        for (name, _) in std::mem::take(&mut self.sleepers) {
            // one that was killed in its sleep stays dead
            let _ = self.scene.signal(&name, Signal::CONT);
        }
        // cut, so that nothing hangs on what was lost in a stalled connection
        self.proxies.clear();
        // of a group one message runs at a time, and who claims many comes back late for the next one
        for _ in 0..2 {
            self.start(Start::new(quick_worker(self.lease)), None).await?;
        }
        self.start(Start::new(keeper()), None).await?;
        Ok((self.scene, self.outages))
    }

    async fn start(&mut self, start: Start, proxy: Option<usize>) -> anyhow::Result<String> {
        let url = proxy.map(|proxy| self.proxies[proxy].1.clone());
        self.scene.start(Start { url, patience: PATIENCE, ..start }).await
    }

    async fn start_worker(&mut self, proxy: Option<usize>) -> anyhow::Result<String> {
        let role = worker(self.lease, self.chance);
        self.start(Start::new(role), proxy).await
    }

    /// As many producers and workers as there should be, some of them with a fault of their own.
    async fn keep_staffed(&mut self, left: u64) -> anyhow::Result<()> {
        let living = self.scene.living();
        let count = |kind: &str| living.iter().filter(|name| name.starts_with(kind)).count();
        for _ in count("producer")..usize::try_from(PRODUCERS).unwrap_or(0) {
            let fault = self.chance.percent(20).then(|| fault(self.chance, &SENDING));
            let start = Start { fault, skew_ms: self.skew(), ..Start::new(producer((left / PRODUCERS).max(1))) };
            let proxy = self.chance.percent(50).then_some(0);
            self.start(start, proxy).await?;
        }
        for _ in count("keeper")..KEEPERS {
            self.start(Start::new(keeper()), None).await?;
        }
        for _ in count("worker")..1 + DIRECT_WORKERS + PROXIES {
            let fault = self.chance.percent(30).then(|| fault(self.chance, &POINTS));
            let proxy = usize::try_from(self.chance.below(PROXIES as u64 + 1)).unwrap_or(0);
            let role = worker(self.lease, self.chance);
            let start = Start { fault, skew_ms: self.skew(), ..Start::new(role) };
            self.start(start, (proxy < PROXIES).then_some(proxy)).await?;
        }
        Ok(())
    }

    /// Up to two hours in either direction.
    fn skew(&mut self) -> i64 {
        i64::try_from(self.chance.below(14_400_000)).unwrap_or(0) - 7_200_000
    }

    async fn fault(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        self.wake_sleepers();
        if self.chance.below(POSTGRES_IN) == 0 {
            let from = moment();
            let outage = self.server.crash().await?;
            self.outages.push((from, moment()));
            tally.postgres_killed += 1;
            tally.outage_max_s = tally.outage_max_s.max(outage.as_secs_f64());
            return Ok(());
        }
        let proxy = usize::try_from(self.chance.below(PROXIES as u64)).unwrap_or(0);
        let kind = self.chance.below(10);
        match kind {
            0..4 => self.kill(),
            4 => tally.workers_stopped += u32::from(self.put_to_sleep()),
            _ => {
                tally.connections_disturbed += 1;
                self.disturb(proxy, kind);
            }
        }
        Ok(())
    }

    fn pick(&mut self, kind: &str) -> Option<String> {
        let mut living = self.scene.living();
        living.retain(|name| name.starts_with(kind) && *name != self.sound);
        let pick = usize::try_from(self.chance.below(living.len() as u64)).ok()?;
        living.into_iter().nth(pick)
    }

    fn kill(&mut self) {
        let kind = match self.chance.below(6) {
            0 => "producer",
            1 => "keeper",
            _ => "worker",
        };
        if let Some(victim) = self.pick(kind) {
            // one that has just ended cannot be killed any more
            let _ = self.scene.signal(&victim, Signal::KILL);
        }
    }

    /// Past its lease, and back.
    fn put_to_sleep(&mut self) -> bool {
        let Some(victim) = self.pick("worker") else { return false };
        let time = self.lease + self.lease.mul_f64(0.5);
        self.sleepers.push((victim.clone(), Instant::now() + time));
        self.scene.signal(&victim, Signal::STOP).is_ok()
    }

    fn wake_sleepers(&mut self) {
        let now = Instant::now();
        let (awake, asleep): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sleepers).into_iter().partition(|(_, at)| *at <= now);
        self.sleepers = asleep;
        for (name, _) in awake {
            let _ = self.scene.signal(&name, Signal::CONT);
        }
    }

    fn disturb(&mut self, proxy: usize, kind: u64) {
        let cuts = [Cut::BeforeRequest, Cut::BeforeReply, Cut::InReply, Cut::AfterReply];
        let cut = cuts[usize::try_from(self.chance.below(4)).unwrap_or(0)];
        let hints = [Hints::Pass, Hints::Lose, Hints::Double, Hints::Reorder]
            [usize::try_from(self.chance.below(4)).unwrap_or(0)];
        let slow = Direction::Delayed(Duration::from_millis(1 + self.chance.below(10)));
        let (proxy, _) = &self.proxies[proxy];
        match kind {
            5 => proxy.cut_all(),
            6 => proxy.trap(Trigger::Statement, cut),
            7 => proxy.hints(hints),
            8 => proxy.flow(Direction::Open, if cut == Cut::InReply { Direction::Stalled } else { slow }),
            _ => proxy.flow(Direction::Open, Direction::Open),
        }
    }
}

/// A kill by one's own hand at one of these points.
fn fault(chance: &mut Chance, points: &[Point]) -> Fault {
    let point = points[usize::try_from(chance.below(points.len() as u64)).unwrap_or(0)];
    Fault { point, nth: 1 + u32::try_from(chance.below(20)).unwrap_or(0), how: How::Kill }
}
