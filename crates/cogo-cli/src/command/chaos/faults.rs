//! Does what the schedule says to a running fleet, and measures how long it takes to heal.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use cogo_bus_check::Hints;
use rustix::process::Signal;
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};

use super::{
    fleet::{ChaosFleet, signal},
    schedule::{Fault, FaultKind, Seat},
    server::ChaosServer,
    watch::{Look, Shared},
};
use crate::{failure::Failure, output::Output};

/// It counts as healed when it has looked so for this long: work that hangs on the fault shows as stuck after 5 s.
const FIRM: Duration = Duration::from_secs(6);
/// How far healing may draw the run out before the faults that are left are left out.
const MOST_OVERTIME: Duration = Duration::from_secs(60);
/// A fleet that has not healed by then is given up on; the next fault comes all the same.
const MOST_PATIENCE: Duration = Duration::from_secs(90);
/// From the stop of a process to the start of the one that takes its slot.
const BEFORE_TAKE_OVER: Duration = Duration::from_secs(3);
const HOUR_MS: i64 = 3_600_000;

/// What became of one fault.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Healed {
    #[serde(flatten)]
    pub(crate) fault: Fault,
    /// When it came, since the load began.
    pub(crate) began_ms: u64,
    /// How long it took until the fleet was whole again: from the fault, of a stop from its end.
    pub(crate) recovery_s: f64,
    /// Of a crash that its parent sees: until the slot had an owner again that may claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crash_recovery_s: Option<f64>,
    /// Of a stop: until nothing was stuck in the hands of the one who slept. Of a take-over: until the successor claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) take_over_s: Option<f64>,
    /// What was the last to be in order again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) last_ailed: String,
}

/// What the faults need.
pub(crate) struct Injector<'a> {
    pub(crate) fleet: &'a ChaosFleet,
    pub(crate) server: &'a ChaosServer,
    pub(crate) shared: Shared,
    pub(crate) looks: watch::Receiver<Option<Look>>,
    pub(crate) output: Output,
    /// What ailed at the last look at which something did.
    pub(crate) last_ailed: Vec<String>,
}

/// The parts of a recovery, as they are found.
#[derive(Default)]
struct Times {
    recovery: Duration,
    crash: Option<Duration>,
    take_over: Option<Duration>,
}

/// When something was last seen to ail, since a fault began; zero if nothing was.
#[derive(Debug, Clone, Copy, Default)]
struct Ails {
    any: Duration,
    /// Work was stuck.
    stuck: Duration,
}

impl Injector<'_> {
    /// Waits until everything is as it should be for the first time.
    pub(crate) async fn until_whole(&mut self) -> Result<(), Failure> {
        match self.heal(Instant::now()).await {
            Ok(_) => Ok(()),
            Err(ailing) => Err(Failure::timeout("The fleet of the run did not come up").cause(ailing.join(", "))),
        }
    }

    /// Does all of these, each at its time or when the one before has healed; the run is to end at `end`.
    pub(crate) async fn inject(
        &mut self,
        faults: &[Fault],
        begun: Instant,
        end: Instant,
    ) -> Result<Vec<Healed>, Failure> {
        let mut healed = Vec::new();
        for (number, fault) in faults.iter().enumerate() {
            sleep_until((begun + Duration::from_millis(fault.at_ms)).into()).await;
            if Instant::now() + fault.kind.lasts() > end + MOST_OVERTIME {
                let left = faults.len() - number;
                self.output.note(&format!("{left} faults are left out: healing took their time"));
                break;
            }
            let began = Instant::now();
            self.last_ailed.clear();
            let times = Box::pin(self.strike(fault)).await?;
            let one = Healed {
                fault: fault.clone(),
                began_ms: u64::try_from(began.saturating_duration_since(begun).as_millis()).unwrap_or(u64::MAX),
                recovery_s: seconds(times.recovery),
                crash_recovery_s: times.crash.map(seconds),
                take_over_s: times.take_over.map(seconds),
                last_ailed: std::mem::take(&mut self.last_ailed).join(", "),
            };
            self.output.note(&line(number + 1, faults.len(), &one));
            healed.push(one);
        }
        Ok(healed)
    }

    async fn strike(&mut self, fault: &Fault) -> Result<Times, Failure> {
        match (fault.kind, fault.victim) {
            (FaultKind::Kill, Some(victim)) => self.kill(victim).await,
            (FaultKind::Stop10 | FaultKind::Stop40, Some(victim)) => self.stop(victim, fault.kind.lasts()).await,
            (FaultKind::TakeOver, Some(victim)) => Box::pin(self.take_over(victim, fault.kind.lasts())).await,
            (FaultKind::ClockAhead, Some(victim)) => self.clock(victim, HOUR_MS, fault.kind.lasts()).await,
            (FaultKind::ClockBehind, Some(victim)) => self.clock(victim, -HOUR_MS, fault.kind.lasts()).await,
            (FaultKind::PostgresKill, _) => {
                self.shared.outage();
                self.server.kill()?;
                Ok(self.since(Instant::now()).await)
            }
            (FaultKind::PostgresStop, _) => {
                let began = Instant::now();
                self.shared.outage();
                Box::pin(self.server.stop_at_once()).await?;
                Ok(self.since(began).await)
            }
            (FaultKind::HintsLost, _) => {
                self.fleet.hints(Hints::Lose);
                let during = self.ails_during(fault.kind.lasts()).await;
                self.fleet.hints(Hints::Pass);
                Ok(self.after(during).await)
            }
            (FaultKind::ListenersCut, _) => {
                let began = Instant::now();
                let cut = self.server.cut_listeners().await?;
                self.output.note(&format!("cut {cut} connections that listened"));
                Ok(self.since(began).await)
            }
            (_, None) => Err(Failure::failed("The schedule names no victim")),
        }
    }

    async fn kill(&mut self, victim: Seat) -> Result<Times, Failure> {
        let pid = self.pid(victim).await?;
        let began = Instant::now();
        signal(pid, Signal::KILL)?;
        let crash =
            self.until(began, |look| look.owners.get(&victim).is_some_and(|owner| owner.0 != pid && owner.1)).await;
        Ok(Times { crash: Some(crash), ..self.since(began).await })
    }

    async fn stop(&mut self, victim: Seat, time: Duration) -> Result<Times, Failure> {
        let pid = self.pid(victim).await?;
        signal(pid, Signal::STOP)?;
        let during = self.ails_during(time).await;
        signal(pid, Signal::CONT)?;
        // that a process sleeps is the fault itself; what was in its hands is what must not wait for it
        Ok(Times { take_over: Some(during.stuck), ..self.since(Instant::now()).await })
    }

    /// Two processes for one slot: the first sleeps while the second takes over, and wakes beside it.
    async fn take_over(&mut self, victim: Seat, time: Duration) -> Result<Times, Failure> {
        let first = self.pid(victim).await?;
        signal(first, Signal::STOP)?;
        let wake_at = Instant::now() + time;
        sleep(BEFORE_TAKE_OVER).await;
        let began = Instant::now();
        self.fleet.start_stand_in(victim).await?;
        let second = self.fleet.pid_of_stand_in(victim).await.ok_or_else(|| gone(victim))?;
        let took = self.until(began, |look| look.owners.get(&victim) == Some(&(second, true))).await;
        sleep_until(wake_at.into()).await;
        signal(first, Signal::CONT)?;
        let woken = Instant::now();
        // it finds its slot taken and ends by itself, for good
        while !self.fleet.is_down(victim).await && woken.elapsed() < MOST_PATIENCE {
            sleep(Duration::from_millis(100)).await;
        }
        let left = woken.elapsed();
        if left >= MOST_PATIENCE {
            self.output.note(&format!("{victim} was superseded and did not end"));
            // its tree starts it again, and the run goes on
            signal(first, Signal::KILL)?;
        }
        self.fleet.end_stand_in(victim).await?;
        let swapped = self.since(Instant::now()).await.recovery;
        Ok(Times { recovery: left.max(swapped), take_over: Some(took), crash: None })
    }

    async fn clock(&mut self, victim: Seat, off_ms: i64, time: Duration) -> Result<Times, Failure> {
        self.fleet.set_clock(victim, off_ms)?;
        let during = self.ails_during(time).await;
        self.fleet.set_clock(victim, 0)?;
        Ok(self.after(during).await)
    }

    /// Of a fault under which the fleet must work on: from its beginning while it lasts, from its end afterwards.
    async fn after(&mut self, during: Ails) -> Times {
        let after = self.since(Instant::now()).await;
        Times { recovery: after.recovery.max(during.any), ..after }
    }

    async fn pid(&self, seat: Seat) -> Result<u32, Failure> {
        self.fleet.pid(seat).await.ok_or_else(|| gone(seat))
    }

    /// How long it takes from `began` until the fleet is whole, which it was all along if nothing was seen to ail.
    async fn since(&mut self, began: Instant) -> Times {
        let recovery = match self.heal(began).await {
            Ok(recovery) => recovery,
            Err(ailing) => {
                self.output.note(&format!("not healed after {} s: {}", MOST_PATIENCE.as_secs(), ailing.join(", ")));
                MOST_PATIENCE
            }
        };
        Times { recovery, ..Times::default() }
    }

    /// The time from `began` to the first of several looks in a row that show the fleet whole.
    async fn heal(&mut self, began: Instant) -> Result<Duration, Vec<String>> {
        let mut whole_since: Option<Instant> = None;
        loop {
            let look = self.next_look().await;
            if look.at < began {
                continue;
            }
            if look.ailing.is_empty() {
                let since = *whole_since.get_or_insert(look.at);
                if look.at.saturating_duration_since(since) >= FIRM {
                    return Ok(since.saturating_duration_since(began));
                }
            } else {
                whole_since = None;
                if look.at.saturating_duration_since(began) >= MOST_PATIENCE {
                    return Err(look.ailing);
                }
            }
        }
    }

    /// The time from `began` until a look shows this.
    async fn until(&mut self, began: Instant, is_so: impl Fn(&Look) -> bool) -> Duration {
        loop {
            let look = self.next_look().await;
            if look.at >= began && (is_so(&look) || began.elapsed() >= MOST_PATIENCE) {
                return look.at.saturating_duration_since(began);
            }
        }
    }

    /// Looks for `time`; answers how long after its beginning something was last seen to ail.
    async fn ails_during(&mut self, time: Duration) -> Ails {
        let began = Instant::now();
        let end = began + time;
        let mut ails = Ails::default();
        loop {
            let look = tokio::select! {
                look = self.next_look() => look,
                () = sleep_until(end.into()) => return ails,
            };
            if look.at < began {
                continue;
            }
            let after = look.at.saturating_duration_since(began);
            if !look.ailing.is_empty() {
                ails.any = after;
            }
            if look.is_stuck {
                ails.stuck = after;
            }
        }
    }

    async fn next_look(&mut self) -> Look {
        loop {
            if self.looks.changed().await.is_err() {
                // whoever looks is gone, as at the end of the run
                std::future::pending::<()>().await;
            }
            if let Some(look) = self.looks.borrow_and_update().clone() {
                if !look.ailing.is_empty() {
                    self.last_ailed.clone_from(&look.ailing);
                }
                return look;
            }
        }
    }
}

/// To hundredths: a look comes five times a second.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

/// How often each kind came.
pub(crate) fn counted(healed: &[Healed]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for one in healed {
        *counts.entry(one.fault.kind.name()).or_default() += 1;
    }
    counts
}

fn gone(seat: Seat) -> Failure {
    Failure::failed(format!("{seat} does not run"))
}

fn line(number: usize, of: usize, one: &Healed) -> String {
    let victim = one.fault.victim.map_or_else(String::new, |victim| format!(" {victim}"));
    let mut text = format!(
        "{number}/{of} at {:.1} s: {}{victim}, whole again after {:.1} s",
        Duration::from_millis(one.began_ms).as_secs_f64(),
        one.fault.kind.name(),
        one.recovery_s
    );
    if let Some(crash) = one.crash_recovery_s {
        text.push_str(&format!(", the slot after {crash:.1} s"));
    }
    if let Some(take_over) = one.take_over_s {
        text.push_str(&format!(", its work after {take_over:.1} s"));
    }
    if !one.last_ailed.is_empty() {
        text.push_str(&format!(" (last: {})", one.last_ailed));
    }
    text
}
