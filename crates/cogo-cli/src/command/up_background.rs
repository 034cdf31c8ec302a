//! `cogo up --detach`: leaves a process behind that does the work, and waits until the fleet is ready.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use cogo_contracts::Problem;
use tokio::process::Command;

use crate::{
    command::{
        up::{Up, already_up},
        up_table::show,
    },
    context::Context,
    failure::Failure,
    fleet::{Phase, last_words},
};

const LOG: &str = "up";
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Starts the same command in the background; returns when the fleet is ready or could not be started.
pub(crate) async fn run(up: &Up, context: &Context) -> Result<(), Failure> {
    // taken and given back: without this look, the log of a running fleet would be put aside
    if context.home.take()?.is_none() {
        return Err(already_up(context));
    }
    let log = context.home.fresh_log(LOG)?;
    let mut command = Command::new(std::env::current_exe()?);
    // errors come back as problems in the log
    command.args(["up", "--background", "--json", "--data-dir"]).arg(context.home.path());
    command.args(["--port-offset", &up.port_offset.to_string(), "--ready-timeout", &up.ready_timeout.to_string()]);
    if !up.only.is_empty() {
        command.args(["--only", &up.only.join(",")]);
    }
    if let Some(file) = &up.processes {
        command.arg("--processes").arg(Context::absolute(file)?);
    }
    if let Some(url) = &context.given_database_url {
        // not on the command line, where everybody could read it
        command.env("DATABASE_URL", url);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn()?;
    let pid = child.id();

    let spinner = context.output.spinner("starting the fleet");
    loop {
        if let Some(status) = child.try_wait()? {
            spinner.finish_and_clear();
            return Err(ended_early(context, status));
        }
        let state = context.home.read_state()?;
        if let Some(state) = state.filter(|state| state.up.as_ref().map(|identity| identity.pid) == pid)
            && state.phase == Phase::Ready
        {
            spinner.finish_and_clear();
            show(&context.output, &state)?;
            context.output.note("`cogo down` stops the fleet");
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The reason stands at the end of the log, as a problem unless the process was killed.
fn ended_early(context: &Context, status: ExitStatus) -> Failure {
    let lines = context.home.log_tail(LOG);
    let problem = lines.iter().rev().find_map(|line| serde_json::from_str::<Problem>(line).ok());
    if let Some(problem) = problem {
        return Failure::from_problem(problem);
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    Failure::failed(format!("The background process ended before the fleet was ready ({how})"))
        .cause(last_words(&lines))
        .hint(format!("see {}", context.home.log(LOG).display()))
}
