//! `cogo tail`: follows what happens on the bus.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use cogo_bus_core::{Bus, Event, WakeUps, events_of_task, recent_events};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    command::event_kinds,
    context::Context,
    failure::Failure,
    format,
    output::{Look, Paint},
};

/// A lost hint costs at most this.
const POLL: Duration = Duration::from_millis(500);
/// Hints come in bursts; one look serves them all.
const SETTLE: Duration = Duration::from_millis(30);
const PAGE: u32 = 1000;
/// Numbers are given before the commit, so an earlier one may become visible later than this many others.
const OVERLAP: i64 = 500;

/// Follow the audit events of the bus until interrupted.
#[derive(Debug, Args)]
#[command(
    after_help = format!("Kinds, to which services may add their own:\n{}\n\nExamples:\n  cogo tail\n  cogo tail --kind execute_failed --kind message_failed\n  cogo tail --task 01999999-0000-7000-8000-000000000000 --no-follow --json", event_kinds::in_words())
)]
pub(crate) struct Tail {
    /// Only events of this task.
    #[arg(long, value_name = "ID")]
    task: Option<Uuid>,
    /// Only events of this kind, see below; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = event_kinds::parse)]
    kind: Vec<String>,
    /// Begin with this many past events; all of them with --task.
    #[arg(long, value_name = "N", default_value_t = 10)]
    lines: u32,
    /// End after the past events.
    #[arg(long)]
    no_follow: bool,
}

impl Tail {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        tokio::select! {
            outcome = Box::pin(self.follow(context)) => outcome,
            // the usual way to end it
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }

    async fn follow(&self, context: &Context) -> Result<(), Failure> {
        let bus = context.bus().await?;
        self.tell_unknown_kinds(context, &bus).await?;
        let stop = CancellationToken::new();
        let _stop_at_end = stop.clone().drop_guard();
        let wakeups = WakeUps::default();
        let mut hints = wakeups.subscribe();
        let mut background = JoinSet::new();
        if !self.no_follow {
            background.spawn(wakeups.run(bus.pool().clone(), stop));
        }
        let mut seen = Seen::default();
        for event in self.past(&bus, &mut seen).await? {
            show(context, &event)?;
        }
        if self.no_follow {
            return Ok(());
        }
        loop {
            tokio::select! {
                _ = hints.recv() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(POLL) => {}
            }
            while hints.try_recv().is_ok() {}
            while self.show_fresh(context, &bus, &mut seen).await? {}
        }
    }

    /// A service may write kinds of its own, so one that nobody has seen is no error.
    async fn tell_unknown_kinds(&self, context: &Context, bus: &Bus) -> Result<(), Failure> {
        for kind in self.kind.iter().filter(|kind| !event_kinds::is_known(kind)) {
            if recent_events(bus.pool(), None, Some(kind), 1).await?.is_empty() {
                context.output.note(&format!(
                    "there is no event of kind {kind}, and COGO itself writes none; it writes\n{}",
                    event_kinds::in_words()
                ));
            }
        }
        Ok(())
    }

    /// Shows one page of what is new; true if there may be more at once.
    async fn show_fresh(&self, context: &Context, bus: &Bus, seen: &mut Seen) -> Result<bool, Failure> {
        let page = recent_events(bus.pool(), Some(seen.floor()), None, PAGE).await?;
        let is_full = page.len() >= usize::try_from(PAGE).unwrap_or(usize::MAX);
        let fresh: Vec<Event> = page.into_iter().filter(|event| seen.is_new(event.id)).collect();
        for event in fresh.iter().filter(|event| self.wants(event)) {
            show(context, event)?;
        }
        Ok(is_full && !fresh.is_empty())
    }

    /// What happened before, oldest first; afterwards only newer events are new.
    async fn past(&self, bus: &Bus, seen: &mut Seen) -> Result<Vec<Event>, Failure> {
        let newest = recent_events(bus.pool(), None, None, u32::try_from(OVERLAP).unwrap_or(u32::MAX)).await?;
        for event in &newest {
            seen.is_new(event.id);
        }
        if let Some(task) = self.task {
            if bus.task(task).await?.is_none() {
                return Err(Failure::not_found(format!("There is no task {task}")));
            }
            let events = events_of_task(bus.pool(), task).await?;
            for event in &events {
                seen.is_new(event.id);
            }
            return Ok(events.into_iter().filter(|event| self.wants(event)).collect());
        }
        let mut past: Vec<Event> = if self.kind.is_empty() {
            recent_events(bus.pool(), None, None, self.lines).await?
        } else {
            let mut all = Vec::new();
            for kind in &self.kind {
                all.extend(recent_events(bus.pool(), None, Some(kind), self.lines).await?);
            }
            all.sort_by_key(|event| event.id);
            all
        };
        let surplus = past.len().saturating_sub(usize::try_from(self.lines).unwrap_or(usize::MAX));
        past.drain(..surplus);
        for event in &past {
            seen.is_new(event.id);
        }
        Ok(past)
    }

    fn wants(&self, event: &Event) -> bool {
        let of_task = self.task.is_none() || event.root_id == self.task;
        of_task && (self.kind.is_empty() || self.kind.contains(&event.kind))
    }
}

/// Which events have been looked at, as far back as a late one may appear.
#[derive(Debug, Default)]
struct Seen {
    ids: BTreeSet<i64>,
}

impl Seen {
    /// Remembers the id; false if it was known.
    fn is_new(&mut self, id: i64) -> bool {
        let fresh = self.ids.insert(id);
        let floor = self.floor();
        while self.ids.first().is_some_and(|first| *first < floor) {
            self.ids.pop_first();
        }
        fresh
    }

    /// Everything up to here is settled.
    fn floor(&self) -> i64 {
        self.ids.last().map_or(0, |last| (last - OVERLAP).max(0))
    }
}

fn show(context: &Context, event: &Event) -> Result<(), Failure> {
    context.output.either(event, || line(event, context.output.paint))
}

fn line(event: &Event, paint: Paint) -> String {
    let look = match event.kind.as_str() {
        "execute_failed" | "message_failed" | "agent_dead" => Some(Look::Bad),
        "execute_retry" | "lease_expired" | "agent_suspect" => Some(Look::Warning),
        "execute_done" => Some(Look::Good),
        _ => None,
    };
    let kind = format!("{:<18}", event.kind);
    let kind = look.map_or_else(|| kind.clone(), |look| paint.paint(look, &kind));
    let route = event.route.as_deref().unwrap_or("-");
    let task = event.root_id.map_or_else(|| "-".to_owned(), |root| root.to_string());
    let detail = match &event.detail {
        serde_json::Value::Object(facts) => facts
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name}={}", plain(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    };
    let time = paint.paint(Look::Dim, &event.at.format("%H:%M:%S%.3f").to_string());
    format!("{time} {kind} {} {task} {}", format::one_line(route), format::shortened(&detail, 160))
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_new_once_even_when_it_comes_late() {
        let mut seen = Seen::default();
        assert!(seen.is_new(10));
        assert!(!seen.is_new(10));
        assert!(seen.is_new(8));
        assert_eq!(seen.floor(), 0);
        assert!(seen.is_new(2000));
        assert_eq!((seen.floor(), seen.ids.len()), (1500, 1));
    }
}
