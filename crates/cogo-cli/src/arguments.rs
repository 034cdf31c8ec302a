//! The command line as clap sees it.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::command;

/// Start, feed, watch and stop a fleet of agents that work together through Postgres.
#[derive(Debug, Parser)]
#[command(
    name = "cogo",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  cogo up --detach\n  cogo index .\n  cogo ask \"What happens when a lease expires?\"\n  cogo down\n\n\
        Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not allowed, 6 timeout, 7 not available"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Write data as JSON, streams as one object per line, and errors as a problem object.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Directory of the fleet's state, logs and embedded Postgres.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = ".cogo",
        env = "COGO_DATA_DIR",
        help_heading = "Everywhere"
    )]
    pub(crate) data_dir: PathBuf,
    /// Address of the database instead of the embedded one, better given as DATABASE_URL.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DATABASE_URL",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) database_url: Option<String>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(command::up::Up),
    Down(command::down::Down),
    Status(command::status::Status),
    Tree(command::tree::Tree),
    Drain(command::steer::Drain),
    Suspend(command::pause::Suspend),
    Resume(command::pause::Resume),
    Restart(command::steer::Restart),
    Scale(command::steer::Scale),
    Migrate(command::migrate::Migrate),
    Doctor(command::doctor::Doctor),
    Index(command::index::Index),
    Ask(command::ask::Ask),
    Send(command::send::Send),
    Tail(command::tail::Tail),
    Trace(command::trace::Trace),
    Cancel(command::cancel::Cancel),
    Dlq(command::dead_letters::DeadLetters),
    Schedule(command::schedule::Schedules),
    Schema(command::schema::Schemas),
    Route(command::route::Routes),
    Agents(command::agents::Agents),
    Key(command::key::Keys),
    Config(command::config::Config),
    Child(command::child::Child),
    Bench(command::bench::Bench),
    Chaos(command::chaos::Chaos),
    Version(command::version::Version),
    #[command(hide = true)]
    Launch(command::launch::Launch),
    #[command(hide = true)]
    Guard(command::guard::Guard),
    #[command(hide = true)]
    ChaosAgent(command::chaos::agent::ChaosAgent),
    #[command(hide = true)]
    BenchWorker(command::bench_bus_runtime::BenchWorker),
}

/// The whole command line, for documents and checks.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(command: &clap::Command, path: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
        let leaf = command.get_subcommands().all(|child| child.is_hide_set() || child.get_name() == "help");
        if leaf {
            visit(path, command);
        }
        for child in command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help") {
            walk(child, &format!("{path} {}", child.get_name()), visit);
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        let mut leaves = Vec::new();
        walk(&definition(), "cogo", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path} has no description");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(path), "{path} shows no example of itself");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            leaves.push(path.to_owned());
        });
        for expected in
            ["cogo up", "cogo dlq replay", "cogo bench idle", "cogo trace", "cogo tree", "cogo cancel", "cogo version"]
        {
            assert!(leaves.iter().any(|leaf| leaf == expected), "{expected} is missing");
        }
    }

    #[test]
    fn examples_in_help_texts_parse() {
        walk(&definition(), "cogo", &mut |path, command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().map(str::trim).filter(|line| line.starts_with("cogo ")) {
                let line = line.split(" | ").next().unwrap_or(line);
                let parsed = Cli::try_parse_from(words(line));
                assert!(
                    parsed.is_ok(),
                    "{path}: {line}: {}",
                    parsed.err().map(|error| error.to_string()).unwrap_or_default()
                );
            }
        });
    }

    /// Splits at spaces outside of quotation marks, as a shell would.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for character in line.chars() {
            match (quote, character) {
                (None, '\'' | '"') => quote = Some(character),
                (Some(open), close) if open == close => quote = None,
                (None, ' ') => words.push(String::new()),
                (_, other) => words.last_mut().expect("there is always a word").push(other),
            }
        }
        words
    }

    #[test]
    fn the_words_of_everywhere_stand_before_or_after_the_command() {
        for line in ["cogo --json --data-dir x status", "cogo status --json --data-dir x"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("both orders are fine");
            assert!(cli.global.json);
            assert_eq!(cli.global.data_dir, PathBuf::from("x"));
        }
    }

    #[test]
    fn nonsense_is_refused_as_usage() {
        for line in ["cogo frobnicate", "cogo send rag", "cogo trace not-an-id", "cogo bench ask --rate 0", "cogo dlq"]
        {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
