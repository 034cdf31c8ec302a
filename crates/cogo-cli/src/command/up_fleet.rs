//! Everything that runs while a fleet is up: its processes, the watch over its database, the care for its logs.

use std::{path::PathBuf, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    command::{up::Signals, up_database::Database},
    context::Context,
    failure::Failure,
    fleet::{Exits, Home, ProcessList, Record, Supervised},
};

const BOUND_LOGS_EVERY: Duration = Duration::from_secs(60);

/// Everything that runs while the fleet is up.
pub(crate) struct Fleet {
    /// In the order of their start.
    stops: Vec<CancellationToken>,
    kill: CancellationToken,
    background: CancellationToken,
    tasks: JoinSet<Exits>,
    chores: JoinSet<()>,
}

impl Fleet {
    /// Starts every process in the order of the list, without waiting for any of them.
    pub(crate) fn start(
        context: &Context,
        port_offset: u16,
        list: &ProcessList,
        programs: Vec<PathBuf>,
        database: &Database,
        record: &Record,
    ) -> Result<Self, Failure> {
        let environment = environment(database.url(), port_offset)?;
        let mut fleet = Self {
            stops: Vec::new(),
            kill: CancellationToken::new(),
            background: CancellationToken::new(),
            tasks: JoinSet::new(),
            chores: JoinSet::new(),
        };
        for (process, program) in list.processes.iter().zip(programs) {
            drop(context.home.fresh_log(&process.name)?);
            let stop = CancellationToken::new();
            fleet.stops.push(stop.clone());
            let supervised = Supervised {
                process: process.clone(),
                program,
                environment: environment.clone(),
                home: context.home.clone(),
                record: record.clone(),
                stop,
                kill: fleet.kill.clone(),
            };
            fleet.tasks.spawn(supervised.run());
        }
        fleet.chores.spawn(database.clone().watch(fleet.background.clone()));
        let names: Vec<String> = list.processes.iter().map(|process| process.name.clone()).collect();
        fleet.chores.spawn(bound_logs(context.home.clone(), names, fleet.background.clone()));
        Ok(fleet)
    }

    /// Stops every process in reverse order; a second signal does it at once. The database is still there meanwhile.
    pub(crate) async fn stop(mut self, signals: &mut Signals) {
        for stop in self.stops.iter().rev() {
            stop.cancel();
            // gives each its turn, so that the order of the signals is that of this loop
            tokio::task::yield_now().await;
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        tokio::pin!(all);
        tokio::select! {
            () = &mut all => {}
            () = signals.wait() => {
                self.kill.cancel();
                all.await;
            }
        }
        self.background.cancel();
        while self.chores.join_next().await.is_some() {}
    }
}

/// What each child is told beside its own environment.
fn environment(database_url: &str, port_offset: u16) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut environment = vec![
        ("DATABASE_URL", database_url.to_owned()),
        ("COGO_PORT_OFFSET", port_offset.to_string()),
        ("COGO_LOG_FORMAT", "json".to_owned()),
    ];
    if let Some(directory) = std::env::var_os("COGO_CONFIG_DIR") {
        let directory = Context::absolute(directory.as_ref())?;
        environment.push(("COGO_CONFIG_DIR", directory.to_string_lossy().into_owned()));
    }
    Ok(environment)
}

async fn bound_logs(home: Home, names: Vec<String>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(BOUND_LOGS_EVERY)).await.is_some() {
        for name in names.iter().map(String::as_str).chain(["up"]) {
            match home.bound_log(name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(%error, log = name, "log not cut"),
                _ => {}
            }
        }
    }
}
