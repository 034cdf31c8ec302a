//! `cogo drain`, `cogo restart`, `cogo scale`: change the running fleet through its supervision tree.

use std::time::Duration;

use clap::Args;

use crate::{
    context::Context,
    failure::Failure,
    fleet::{Changed, Request, ask},
    output::table,
};

/// A domain stops one process after the other, each with its time to finish.
const DONE_WITHIN: Duration = Duration::from_secs(600);

/// Let a process, domain or instance finish what it has and stop; it stays down until `cogo restart`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo drain rag-embed\n  cogo drain rag\n  cogo drain rag-embed/1 --json")]
pub(crate) struct Drain {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo tree`.
    target: String,
}

impl Drain {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        steer(context, "draining", &Request::Drain { target: self.target }).await
    }
}

/// Stop and start a process, domain or instance, also one that is down; instances of a pool one after the other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo restart gateway-chat\n  cogo restart rag\n  cogo restart rag-embed/1 --json")]
pub(crate) struct Restart {
    /// `rag-embed` (process), `rag` (domain) or `rag-embed/1` (instance), as in `cogo tree`.
    target: String,
}

impl Restart {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        steer(context, "restarting", &Request::Restart { target: self.target }).await
    }
}

/// Set how many instances of a process run; those taken away finish what they have.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo scale rag-embed 3\n  cogo scale rag-embed 1 --json")]
pub(crate) struct Scale {
    /// A process with a `pool` in the list of processes.
    process: String,
    /// How many instances, within the bounds of the pool.
    instances: u32,
}

impl Scale {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let request = Request::Scale { process: self.process, instances: self.instances };
        steer(context, "scaling", &request).await
    }
}

async fn steer(context: &Context, doing: &str, request: &Request) -> Result<(), Failure> {
    let spinner = context.output.spinner(doing);
    let changed: Result<Changed, Failure> = ask(&context.home, request, DONE_WITHIN).await;
    spinner.finish_and_clear();
    let changed = changed?;
    if !changed.changed && !context.output.is_json() {
        context.output.note("nothing had to be done");
    }
    context.output.either(&changed, || {
        let rows = changed.instances.iter().map(|instance| {
            [
                instance.path.clone(),
                instance.state.clone(),
                instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                instance.last_exit.clone().unwrap_or_default(),
            ]
        });
        table(["agent", "state", ">pid", "last exit"], rows)
    })
}
