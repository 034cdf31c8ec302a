//! From the words of the command line to the exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, error::ErrorKind};

use crate::{
    arguments::{Cli, Command},
    context::Context,
    failure::{Failure, Kind},
    output::Output,
};

/// Runs the command that these words name, the first being the program; answers its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&arguments, &error),
    };
    let output = Output::new(cli.global.json);
    let context = Context::new(output, &cli.global);
    if let Command::Launch(launch) = cli.command {
        return ended(&output, launch.run());
    }
    if let Command::ChaosAgent(agent) = cli.command {
        return agent.run().unwrap_or_else(|failure| ended(&output, Err(failure)));
    }
    if let Command::BenchWorker(worker) = cli.command {
        return worker.run().unwrap_or_else(|failure| ended(&output, Err(failure)));
    }
    // one thread: children must be started by a thread that lives as long as the process
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(&output, Err(Failure::failed("Could not start the runtime").because(&error))),
    };
    let outcome = runtime.block_on(obey(cli.command, &context));
    // a name lookup that hangs must not hold up the exit
    runtime.shutdown_background();
    ended(&output, outcome)
}

async fn obey(command: Command, context: &Context) -> Result<(), Failure> {
    // these are ended by a signal in good order, by themselves
    let ends_itself =
        matches!(command, Command::Up(_) | Command::Tail(_) | Command::Tree(_) | Command::Chaos(_) | Command::Child(_));
    let work = Box::pin(dispatch(command, context));
    if ends_itself {
        return work.await;
    }
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Kind::Interrupted, "Interrupted")),
    }
}

async fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Up(up) => Box::pin(up.run(context)).await,
        Command::Down(down) => Box::pin(down.run(context)).await,
        Command::Status(status) => Box::pin(status.run(context)).await,
        Command::Tree(tree) => Box::pin(tree.run(context)).await,
        Command::Drain(drain) => Box::pin(drain.run(context)).await,
        Command::Suspend(suspend) => Box::pin(suspend.run(context)).await,
        Command::Resume(resume) => Box::pin(resume.run(context)).await,
        Command::Restart(restart) => Box::pin(restart.run(context)).await,
        Command::Scale(scale) => Box::pin(scale.run(context)).await,
        Command::Migrate(migrate) => Box::pin(migrate.run(context)).await,
        Command::Doctor(doctor) => Box::pin(doctor.run(context)).await,
        Command::Index(index) => Box::pin(index.run(context)).await,
        Command::Ask(ask) => Box::pin(ask.run(context)).await,
        Command::Send(send) => Box::pin(send.run(context)).await,
        Command::Tail(tail) => Box::pin(tail.run(context)).await,
        Command::Trace(trace) => Box::pin(trace.run(context)).await,
        Command::Dlq(dead_letters) => Box::pin(dead_letters.run(context)).await,
        Command::Schedule(schedules) => Box::pin(schedules.run(context)).await,
        Command::Schema(schemas) => Box::pin(schemas.run(context)).await,
        Command::Route(routes) => Box::pin(routes.run(context)).await,
        Command::Agents(agents) => Box::pin(agents.run(context)).await,
        Command::Key(keys) => Box::pin(keys.run(context)).await,
        Command::Config(config) => Box::pin(config.run(context)).await,
        Command::Child(child) => Box::pin(child.run(context)).await,
        Command::Bench(bench) => Box::pin(bench.run(context)).await,
        Command::Chaos(chaos) => Box::pin(chaos.run(context)).await,
        Command::Version(version) => version.run(context),
        Command::Launch(launch) => launch.run(),
        Command::Guard(guard) => Box::pin(guard.run()).await,
        // answered before there was a runtime: it makes its own
        Command::ChaosAgent(agent) => agent.run().map(drop),
        Command::BenchWorker(worker) => worker.run().map(drop),
    }
}

fn ended(output: &Output, outcome: Result<(), Failure>) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    if failure.kind != Kind::ClosedPipe {
        output.failure(&failure);
    }
    ExitCode::from(failure.kind.exit_code())
}

/// Help and version are answers; everything else is wrong usage, in the form that the words ask for.
fn misunderstood(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    if wants_json && !is_answer {
        let text = error.to_string();
        let what = text.trim().trim_start_matches("error: ");
        let failure = Failure::new(Kind::Usage, what).hint("`cogo help` lists the commands");
        return ended(&Output::new(true), Err(failure));
    }
    // a closed pipe is the reader's choice
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
