//! From the words of the command line to the exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use uuid::Uuid;

use crate::{
    arguments::{Cli, Command, definition},
    context::Context,
    failure::{Failure, Kind},
    output::Output,
};

/// Runs the command that these words name, the first being the program; answers its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&arguments, error),
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
    let outcome = tokio::select! {
        // first what reads standard input, then who listens to signals: so they end that reading as ever
        biased;
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => Err(interrupted(context.sent())),
    };
    match context.sent() {
        Some(id) => outcome.map_err(|failure| failure.after_sending(id)),
        None => outcome,
    }
}

/// Breaking off does not take back what was sent.
fn interrupted(sent: Option<Uuid>) -> Failure {
    let Some(id) = sent else { return Failure::new(Kind::Interrupted, "Interrupted") };
    Failure::new(Kind::Interrupted, format!("Interrupted; message {id} was sent and goes on"))
        .hint(format!("`cogo trace {id} --json` has its result once it is done, `cogo cancel {id}` takes it back"))
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
        Command::Cancel(cancel) => Box::pin(cancel.run(context)).await,
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
fn misunderstood(arguments: &[OsString], error: clap::Error) -> ExitCode {
    let mut error = without_environment(arguments, error);
    keep_to_the_public(&mut error);
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

/// The same error as it reads without variables such as DATABASE_URL: clap shows their options as if they had been given, and
/// so as if they had to be. One that only a variable causes stays as it is.
fn without_environment(arguments: &[OsString], error: clap::Error) -> clap::Error {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return error;
    }
    forgetting_environment(definition()).try_get_matches_from(arguments).err().unwrap_or(error)
}

fn forgetting_environment(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| argument.env(None::<&'static str>)).mut_subcommands(forgetting_environment)
}

/// Takes out the commands that only COGO itself starts.
fn keep_to_the_public(error: &mut clap::Error) {
    let all = definition();
    let hidden =
        |name: &String| all.get_subcommands().any(|command| command.is_hide_set() && command.get_name() == name);
    for kind in [ContextKind::ValidSubcommand, ContextKind::SuggestedSubcommand] {
        if let Some(ContextValue::Strings(names)) = error.get(kind) {
            let public: Vec<String> = names.iter().filter(|name| !hidden(name)).cloned().collect();
            error.remove(kind);
            if !public.is_empty() {
                error.insert(kind, ContextValue::Strings(public));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the words are answered with, a variable for the database being set or not.
    fn refusal(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).expect_err(line);
        let mut error = without_environment(&arguments, error);
        keep_to_the_public(&mut error);
        error.to_string()
    }

    #[test]
    fn commands_of_cogo_itself_are_neither_listed_nor_suggested() {
        let text = refusal("cogo --json");
        assert!(text.contains("trace") && !text.contains("launch") && !text.contains("bench-worker"), "{text}");
        let text = refusal("cogo launc");
        assert!(text.contains("launc") && !text.contains("launch"), "{text}");
        assert!(refusal("cogo trac").contains("trace"));
    }

    #[test]
    fn a_limit_wants_one_of_its_numbers_and_a_burst_a_rate() {
        let text = refusal("cogo route limit a/b");
        assert!(["--running", "--rate", "--none"].iter().all(|name| text.contains(name)), "{text}");
        let text = refusal("cogo route limit a/b --burst 3");
        assert!(text.contains("--running <N>|--rate <PER_SECOND>|--none"), "{text}");
        let text = refusal("cogo route limit a/b --running 1 --burst 3");
        assert!(text.contains("not provided:\n  --rate <PER_SECOND>\n\n"), "{text}");
    }
}
