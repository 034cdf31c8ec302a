//! `cogo down`: stops the fleet of a directory and whatever is left of it.

use std::time::{Duration, Instant};

use clap::Args;
use cogo_pg_local::{Cluster, StopMode};
use rustix::process::Signal;
use serde_json::json;

use crate::{
    context::Context,
    failure::Failure,
    fleet::{end_all, signal},
    proc_files::Identity,
};

/// For the processes to stop one after the other in good order, and for Postgres after them.
const PATIENCE: Duration = Duration::from_secs(60);
/// For the rest after the second signal, which kills whoever still runs.
const HURRIED_PATIENCE: Duration = Duration::from_secs(20);
const LEFTOVER_GRACE: Duration = Duration::from_secs(12);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Stop the fleet; nothing to stop is fine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo down\n  cogo down --data-dir .cogo-b")]
pub(crate) struct Down {}

impl Down {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let spinner = context.output.spinner("stopping the fleet");
        let holder = context.home.holder()?;
        if let Some(up) = &holder {
            stop_up(up).await;
        }
        // what is still written down now was not stopped in good order
        let left = match context.home.read_state()? {
            Some(state) => end_all(&state, LEFTOVER_GRACE).await.found,
            None => 0,
        };
        let postgres = stop_postgres(context).await?;
        context.home.remove_state()?;
        spinner.finish_and_clear();
        let value = json!({"was_up": holder.is_some(), "leftovers": left, "postgres_stopped": postgres});
        context.output.either(&value, || match (holder.is_some(), left, postgres) {
            (true, 0, _) => "stopped".to_owned(),
            (_, 1.., _) => format!("stopped, and ended {left} processes that were left over"),
            (false, 0, true) => "stopped the embedded Postgres, which was left over".to_owned(),
            (false, 0, false) => "nothing runs here".to_owned(),
        })
    }
}

/// The `cogo up` stops its fleet by itself; one that takes too long is hurried, one that hangs is killed, and its
/// children follow it.
async fn stop_up(up: &Identity) {
    for patience in [PATIENCE, HURRIED_PATIENCE] {
        signal(up, Signal::TERM);
        let deadline = Instant::now() + patience;
        while up.is_alive() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    signal(up, Signal::KILL);
}

async fn stop_postgres(context: &Context) -> Result<bool, Failure> {
    let Some(cluster) = Cluster::attach(&context.home.postgres())? else { return Ok(false) };
    cluster.stop(StopMode::Fast).await?;
    Ok(true)
}
