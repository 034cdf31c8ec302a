//! Following a rollout of settings to its end.

use std::time::Duration;

use clap::Args;
use cogo_registry_core::{Proposal, Registry, RolloutRecord, RolloutState};

use crate::{
    command::config_show::{acknowledged, record_json},
    context::Context,
    failure::Failure,
};

/// How often it is looked at; looking also moves it on where no process does.
const LOOK: Duration = Duration::from_millis(250);
/// Names of processes that are told at once.
const MOST_NAMES: usize = 4;

/// How long each step may take, and whether to wait for it.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Pace {
    /// Seconds that checking, and then applying, may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3600))]
    patience: u16,
    /// Seconds for which all must stay ready afterwards.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=3600))]
    settle: u16,
    /// Do not wait for the end.
    #[arg(long)]
    pub(super) no_wait: bool,
}

impl Pace {
    pub(super) fn onto(self, proposal: Proposal) -> Proposal {
        proposal.within(i32::from(self.patience) * 1000, i32::from(self.settle) * 1000)
    }
}

/// Waits until a rollout is over and tells how it goes; it ends by itself, as each of its steps has its time.
pub(super) async fn until_over(registry: &Registry, context: &Context, version: i64) -> Result<(), Failure> {
    let mut told = String::new();
    loop {
        let Some(record) = registry.rollout_record(version).await? else {
            return Err(Failure::not_found(format!("Rollout {version} is gone")));
        };
        if record.rollout.state.is_over() {
            return over(context, &record);
        }
        let line = progress(&record);
        if line != told && !context.output.is_json() {
            context.output.note(&line);
            told = line;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn progress(record: &RolloutRecord) -> String {
    let (version, state) = (record.rollout.version, record.rollout.state.as_str());
    let (done, awaited) = (acknowledged(record), &record.awaited);
    let mut line = format!("rollout {version} {state}: {done} of {} answered", done + awaited.len());
    if done + awaited.len() == 0 {
        return format!("rollout {version} {state}: no running process is concerned, those that start will be");
    }
    if awaited.is_empty() && record.rollout.state == RolloutState::Applying {
        let seconds = record.settle_ms / 1000;
        return format!("{line}, all must stay ready for {seconds} s");
    }
    if !awaited.is_empty() {
        let more = if awaited.len() > MOST_NAMES { ", …" } else { "" };
        let names = awaited.iter().take(MOST_NAMES).cloned().collect::<Vec<_>>().join(", ");
        line = format!("{line}, waiting for {names}{more}");
    }
    line
}

fn over(context: &Context, record: &RolloutRecord) -> Result<(), Failure> {
    let version = record.rollout.version;
    let failed = |what: &str| {
        Err(Failure::failed(format!("Rollout {version} {what}"))
            .cause(record.rollout.reason.clone().unwrap_or_default())
            .hint(format!("`cogo config show {version}` tells who answered what")))
    };
    match record.rollout.state {
        RolloutState::Refused => failed("was refused, nothing has changed"),
        RolloutState::RolledBack => failed("was taken back"),
        _ => {
            let done = acknowledged(record);
            context
                .output
                .either(&record_json(record), || format!("rollout {version} is live, applied by {done} agents"))
        }
    }
}
