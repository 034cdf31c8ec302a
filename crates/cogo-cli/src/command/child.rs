//! `cogo child`: an agent of level 3, which works outside and stands in the registry through its parent.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use cogo_bus_core::Claimed;
use cogo_contracts::Route;
use cogo_registry_core::{AgentKey, detect_location};
use cogo_service_runtime::{
    ChildClient, ChildEvent, ChildHandle, ChildIntroduction, ChildWorker, ConnectionSettings, Ended, Order, Trouble,
    TroubleKind, Trust,
};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    command::child_program::answer,
    context::Context,
    failure::{Failure, Kind, about_file},
    output::Output,
};

/// How long a child that was interrupted waits to be let go by its parent.
const LET_GO: Duration = Duration::from_secs(3);

/// Be an agent of level 3: connect to a parent, stand in the registry through it, obey orders, and work with --route.
///
/// The connection carries standing, heartbeats and orders. Work comes over the bus: with --route it is claimed from the
/// database of DATABASE_URL, and the program behind `--` is run for each message, with the payload on standard input. Its
/// standard output is the result; exit code 65 means that no attempt can do better, any other that one may.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo child --name figma-worker --capability figma-export\n  \
        cogo child --parent wss://cogo.example/children --authority ca.pem --name figma-worker --tag zone:a\n  \
        cogo child --name git-worker --route git/analyse --at-once 4 -- ./analyse.sh --quick\n\n\
        `cogo key issue <name>` makes the key that it needs, in COGO_AGENT_KEY. It ends by itself with exit code 5 if the \
        parent does not want it, and 7 after five tries in a row.")]
pub(crate) struct Child {
    /// WebSocket of the parent; unless it is on this machine, wss://.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:3013/children")]
    parent: String,
    /// Name of the agent, that of its key.
    #[arg(long)]
    name: String,
    /// Which replica of it.
    #[arg(long, default_value_t = 0)]
    slot: u16,
    /// What it can do, as `figma-export` or `language:rust`; may be repeated.
    #[arg(long = "capability", value_name = "WORD")]
    capabilities: Vec<String>,
    /// A word to find it by; may be repeated.
    #[arg(long = "tag", value_name = "WORD")]
    tags: Vec<String>,
    /// Version of what it does.
    #[arg(long, value_name = "SEMVER", default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
    /// Key of its name, better given as COGO_AGENT_KEY.
    #[arg(long, env = "COGO_AGENT_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Certificates (PEM) of the private authority by which the parent is recognised; absent: those of the system.
    #[arg(long, value_name = "FILE", env = "COGO_PARENT_AUTHORITY")]
    authority: Option<PathBuf>,
    /// Route whose messages it works on: service/role or service/role/shard. It becomes a capability of it.
    #[arg(long, requires = "program")]
    route: Option<Route>,
    /// How many messages it works on at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000), requires = "route")]
    at_once: u16,
    /// What it runs for each message.
    #[arg(last = true, value_name = "PROGRAM", requires = "route")]
    program: Vec<String>,
}

/// The tokens of its end.
#[derive(Clone, Default)]
struct Ending {
    /// Take nothing new.
    work: CancellationToken,
    /// Close the connection.
    connection: CancellationToken,
}

impl Child {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let instance = format!("{}/{}", self.name, self.slot);
        let (client, handle) = self.client()?;
        let worker = match &self.route {
            Some(route) => {
                let worker = ChildWorker::new(context.bus().await?, route.clone(), &instance, &handle);
                Some(worker.at_once(self.at_once))
            }
            None => None,
        };
        let (ending, orders, finished) = (Ending::default(), handle.orders.clone(), handle.finished.clone());
        let beside = async {
            tokio::join!(work(worker, self.program, orders, finished, ending.clone()), interrupted(ending.clone()))
        };
        let mut news = News { output: context.output, instance, handle, shown: None };
        let ended = tokio::select! {
            ended = client.run(ending.connection.clone()) => ended,
            told = news.tell() => return told,
            // never
            ((), outcome) = beside => return outcome,
        };
        while let Ok(event) = news.handle.events.try_recv() {
            news.event(event)?;
        }
        news.trouble()?;
        outcome(ended, news.handle.trouble.borrow().as_ref())
    }

    fn client(&self) -> Result<(ChildClient, ChildHandle), Failure> {
        let usage = |error: &dyn std::error::Error| Failure::new(Kind::Usage, error.to_string());
        let Some(key) = &self.key else {
            let hint = format!("`export COGO_AGENT_KEY=$(cogo key issue {})`", self.name);
            return Err(Failure::new(Kind::Usage, "An agent of level 3 needs the key of its name").hint(hint));
        };
        let key = AgentKey::parse(key).map_err(|error| usage(&error))?;
        let version = self.agent_version.parse();
        let version = version.map_err(|_| Failure::new(Kind::Usage, "--agent-version is no semantic version"))?;
        let mut capabilities = self.capabilities.clone();
        capabilities.extend(self.route.as_ref().map(|route| format!("route:{route}")));
        let environment: std::collections::HashMap<String, String> = std::env::vars().collect();
        let introduction = ChildIntroduction {
            name: self.name.clone(),
            slot: self.slot,
            version,
            capabilities,
            tags: self.tags.clone(),
            location: Some(detect_location(|name: &str| environment.get(name).cloned())),
        };
        let made = ChildClient::new(&self.parent, introduction, key, ConnectionSettings::default());
        let (client, handle) = made.map_err(|error| usage(&error))?;
        let Some(file) = &self.authority else { return Ok((client, handle)) };
        let pem = std::fs::read(file).map_err(about_file("read", file))?;
        let trust = Trust::authorities(&pem).map_err(|error| {
            Failure::new(Kind::Usage, format!("{} holds no authority", file.display())).because(&error)
        })?;
        Ok((client.trusting(trust), handle))
    }
}

/// Works until it is told to leave or is interrupted; then sees to it that the connection ends.
async fn work(
    worker: Option<ChildWorker>,
    program: Vec<String>,
    mut orders: watch::Receiver<Order>,
    finished: CancellationToken,
    ending: Ending,
) {
    match worker {
        Some(worker) => {
            let run = move |message: Claimed| {
                let program = program.clone();
                async move { answer(&program, message).await }
            };
            Box::pin(worker.run(run, ending.work.clone())).await;
        }
        // nothing is ever in its hands
        None => tokio::select! {
            _ = orders.wait_for(|order| *order == Order::Leave) => finished.cancel(),
            () = ending.work.cancelled() => finished.cancel(),
        },
    }
    if ending.work.is_cancelled() {
        // a parent that is not there lets nobody go
        tokio::time::sleep(LET_GO).await;
        ending.connection.cancel();
    }
}

/// The first signal ends the work in good order, the second one the connection at once. Never ends well.
async fn interrupted(ending: Ending) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    for token in [&ending.work, &ending.connection] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
    std::future::pending().await
}

/// What becomes of the child, one line for each.
struct News {
    output: Output,
    instance: String,
    handle: ChildHandle,
    /// The trouble that was told last.
    shown: Option<Trouble>,
}

impl News {
    /// Tells until nobody wants to read it.
    async fn tell(&mut self) -> Result<(), Failure> {
        loop {
            tokio::select! {
                Some(event) = self.handle.events.recv() => self.event(event)?,
                Ok(()) = self.handle.orders.changed() => self.order()?,
                Ok(()) = self.handle.trouble.changed() => self.trouble()?,
                // the connection has ended, and whoever waits for that goes on
                else => std::future::pending().await,
            }
        }
    }

    fn event(&self, event: ChildEvent) -> Result<(), Failure> {
        let seated = self.handle.seated.borrow().clone();
        let holder = seated.as_ref().map(|seated| seated.holder.as_str());
        let epoch = seated.as_ref().map(|seated| seated.epoch);
        let told = json!({"event": event.as_str(), "agent": self.instance, "holder": holder, "epoch": epoch});
        self.output.either(&told, || match (event, holder) {
            (ChildEvent::Connected | ChildEvent::Reconnected, Some(holder)) => format!("{event} as {holder}"),
            _ => event.to_string(),
        })
    }

    fn order(&mut self) -> Result<(), Failure> {
        let order = *self.handle.orders.borrow_and_update();
        self.output.either(&json!({"order": order, "agent": self.instance}), || match order {
            Order::Work => "resumed: works again".to_owned(),
            Order::Pause => "suspended: takes nothing new".to_owned(),
            Order::Leave => "drained: finishes what it has and leaves".to_owned(),
        })
    }

    fn trouble(&mut self) -> Result<(), Failure> {
        let trouble = self.handle.trouble.borrow_and_update().clone();
        if trouble == self.shown {
            return Ok(());
        }
        self.shown.clone_from(&trouble);
        let Some(Trouble { kind, reason }) = trouble else { return Ok(()) };
        let word = match kind {
            TroubleKind::Unreachable => "unreachable",
            TroubleKind::Untrusted => "untrusted",
            TroubleKind::TurnedAway => "turned-away",
        };
        let told = json!({"trouble": word, "reason": reason, "agent": self.instance});
        self.output.either(&told, || format!("{word}: {reason}"))
    }
}

fn outcome(ended: Ended, trouble: Option<&Trouble>) -> Result<(), Failure> {
    let (kind, what) = match ended {
        Ended::Stopped | Ended::Drained => return Ok(()),
        Ended::Refused => (Kind::Auth, "The parent does not want this agent"),
        Ended::GivenUp => (Kind::Unavailable, "The parent was tried in vain, and is given up"),
    };
    let failure = Failure::new(kind, what).cause(trouble.map_or_else(String::new, |trouble| trouble.reason.clone()));
    Err(match (ended, trouble.map(|trouble| trouble.kind)) {
        (Ended::Refused, _) => {
            failure.hint("`cogo key issue <name>` makes a key for its name; `cogo agents` shows who has its place")
        }
        (_, Some(TroubleKind::Untrusted)) => {
            failure.hint("give the certificate of the parent's authority by --authority")
        }
        _ => failure.hint("is the parent up, and are its children let in (setting `children`)?"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_by_their_exit_code() {
        let trouble = |kind| Trouble { kind, reason: "why".to_owned() };
        assert!(outcome(Ended::Drained, None).is_ok() && outcome(Ended::Stopped, None).is_ok());
        for (ended, kind, expected, hint) in [
            (Ended::Refused, TroubleKind::TurnedAway, Kind::Auth, "cogo key issue"),
            (Ended::GivenUp, TroubleKind::Untrusted, Kind::Unavailable, "--authority"),
            (Ended::GivenUp, TroubleKind::Unreachable, Kind::Unavailable, "`children`"),
        ] {
            let failure = outcome(ended, Some(&trouble(kind))).expect_err("it ended badly");
            assert_eq!(failure.kind, expected);
            assert!(failure.text().contains("cause: why") && failure.text().contains(hint), "{}", failure.text());
        }
    }
}
