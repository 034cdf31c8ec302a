//! `cogo route`: steering one route of the bus, for all processes at once.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cogo_bus_core::{Bus, CountedBy, Limit, RouteSettings, totals};
use cogo_contracts::{Route, Tenant};

use crate::{
    command::route_list::list,
    context::Context,
    failure::{Failure, Kind},
    output::table,
};

/// Who the bus notes as having changed a route.
const ACTOR: &str = "cogo route";

/// Steer routes of the bus: pause, drain, limit them, or show how they are set and how much waits.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Routes {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the routes with unfinished messages and those that were ever steered: how much waits and runs, and their limits.
    #[command(
        visible_alias = "ls",
        after_help = "DELAYED wait for their time, WAITING for anything else: a worker, others of their group, or answers. OLDEST is the age of the oldest message that could be claimed. `queued` of --json counts both.\n\nExamples:\n  cogo route list\n  cogo route list --json"
    )]
    List,
    /// Let nothing of a route start; what runs goes on, and senders notice nothing.
    #[command(after_help = "Examples:\n  cogo route pause rag/embed\n  cogo route pause gateway/chat/1 --json")]
    Pause(Named),
    /// Let a paused route start messages again.
    #[command(after_help = "Examples:\n  cogo route resume rag/embed")]
    Resume(Named),
    /// Let a route accept nothing new; what is there, and what running tasks still send, is worked off.
    #[command(after_help = "Examples:\n  cogo route drain rag/embed")]
    Drain(Named),
    /// Let a drained route accept messages again.
    #[command(after_help = "Examples:\n  cogo route open rag/embed")]
    Open(Named),
    /// Limit how many messages of a route run at once or start in a second, over all processes.
    #[command(
        after_help = "Examples:\n  cogo route limit rag/embed --running 20\n  cogo route limit gateway/chat --by tenant --running 4 --rate 2.5 --burst 10\n  cogo route limit gateway/chat --by tenant --subject acme --running 40\n  cogo route limit gateway/chat --by tenant --subject acme --none"
    )]
    Limit(SetLimit),
    /// Set how long a message waits to make up for one point of priority.
    #[command(
        after_help = "Messages sent before keep their place.\n\nExamples:\n  cogo route aging rag/embed 10000\n  cogo route aging rag/embed 0"
    )]
    Aging {
        #[command(flatten)]
        named: Named,
        /// Milliseconds, at most a day; 0 makes the order that of sending.
        #[arg(value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=86_400_000))]
        ms: u64,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// The route: service/role or service/role/shard.
    route: Route,
}

#[derive(Debug, Args)]
#[group(id = "number", required = true, multiple = true, args = ["running", "rate", "none"])]
struct SetLimit {
    #[command(flatten)]
    named: Named,
    /// What is counted.
    #[arg(long, value_enum, default_value_t = By::Route)]
    by: By,
    /// Only this tenant, or this tenant/key; without it, each that has no limit of its own.
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// At most this many run at once; 0 lets none start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(i32::MAX)))]
    running: Option<u32>,
    /// At most this many start in a second.
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,
    /// As many may start at once after a pause; the rate unless told, at least 1.
    #[arg(long, value_name = "N", requires = "rate", value_parser = positive)]
    burst: Option<f64>,
    /// Remove the limit.
    #[arg(long, conflicts_with_all = ["running", "rate", "burst"])]
    none: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// All messages of the route together.
    Route,
    /// Those of each tenant.
    Tenant,
    /// Those of each limit key of a tenant.
    Key,
}

impl From<By> for CountedBy {
    fn from(by: By) -> Self {
        match by {
            By::Route => Self::Route,
            By::Tenant => Self::Tenant,
            By::Key => Self::Key,
        }
    }
}

impl Routes {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Action::Limit(limit) = &self.action {
            limit.check_subject()?;
        }
        let bus = context.bus().await?;
        let steered = bus.routes().await?;
        let route = match self.action {
            Action::List => return list(context, &bus, steered).await,
            Action::Pause(Named { route }) => {
                bus.pause_route(&route, ACTOR).await?;
                route
            }
            Action::Resume(Named { route }) => {
                bus.resume_route(&route, ACTOR).await?;
                route
            }
            Action::Drain(Named { route }) => {
                bus.drain_route(&route, ACTOR).await?;
                route
            }
            Action::Open(Named { route }) => {
                bus.open_route(&route, ACTOR).await?;
                route
            }
            Action::Limit(limit) => {
                bus.set_limit(&limit.named.route, &limit.limit(), ACTOR).await?;
                limit.named.route
            }
            Action::Aging { named: Named { route }, ms } => {
                bus.set_aging(&route, Duration::from_millis(ms), ACTOR).await?;
                route
            }
        };
        told(context, &bus, &route).await?;
        if steered.iter().all(|settings| settings.route != route) && is_unused(&bus, &route).await {
            context.output.note(&format!(
                "nothing is known of {route} yet: no message of it is there, and it was never steered before; \
                 `cogo route list` shows those in use"
            ));
        }
        Ok(())
    }
}

impl SetLimit {
    /// A subject that no message has would limit nothing.
    fn check_subject(&self) -> Result<(), Failure> {
        let Some(subject) = &self.subject else { return Ok(()) };
        let refused = |what: String| Err(Failure::new(Kind::Usage, what));
        match self.by {
            By::Route => refused("--subject is for --by tenant and --by key; a route has no subject".to_owned()),
            By::Tenant if Tenant::new(subject).is_err() => refused(format!("{subject:?} is no tenant")),
            By::Key if !is_key_of_tenant(subject) => {
                refused(format!("{subject:?} is no key of a tenant; it is written tenant/key, such as acme/gpu"))
            }
            By::Tenant | By::Key => Ok(()),
        }
    }

    fn limit(&self) -> Limit {
        Limit {
            counted_by: self.by.into(),
            subject: self.subject.clone(),
            max_running: self.running,
            per_second: self.rate,
            burst: self.burst,
        }
    }
}

/// A number above 0, for rates.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

/// Such as `acme/gpu`; the key may hold anything, also a slash.
fn is_key_of_tenant(subject: &str) -> bool {
    subject.split_once('/').is_some_and(|(tenant, key)| Tenant::new(tenant).is_ok() && !key.is_empty())
}

/// Whether no message for this service and role is there; a database too busy to say is no reason to worry anybody.
async fn is_unused(bus: &Bus, route: &Route) -> bool {
    let of_route = |service: &str, role: &str| service == route.service() && role == route.role();
    totals(bus.pool()).await.is_ok_and(|totals| !totals.iter().any(|total| of_route(&total.service, &total.role)))
}

/// The route as it is set now.
async fn told(context: &Context, bus: &Bus, route: &Route) -> Result<(), Failure> {
    let settings: Vec<RouteSettings> =
        bus.routes().await?.into_iter().filter(|settings| settings.route == *route).collect();
    let Some(one) = settings.first() else { return Ok(()) };
    context.output.either(one, || rows(&settings))
}

fn rows(routes: &[RouteSettings]) -> String {
    let rows = routes.iter().map(|settings| {
        [
            settings.route.to_string(),
            state(settings.paused, settings.draining).to_owned(),
            settings.aging_ms.to_string(),
            limits_in_words(&settings.limits),
        ]
    });
    table(["route", "state", ">aging ms", "limits"], rows)
}

/// How a route that is set like this is called.
pub(super) const fn state(paused: bool, draining: bool) -> &'static str {
    match (paused, draining) {
        (true, true) => "paused, draining",
        (true, false) => "paused",
        (false, true) => "draining",
        (false, false) => "open",
    }
}

/// All limits of a route in one cell.
pub(super) fn limits_in_words(limits: &[Limit]) -> String {
    if limits.is_empty() {
        return "-".to_owned();
    }
    limits.iter().map(in_words).collect::<Vec<_>>().join(", ")
}

/// Such as `tenant acme: 4 at once, 2.5/s burst 10`.
fn in_words(limit: &Limit) -> String {
    let counted = limit.counted_by.as_str();
    let whom = match &limit.subject {
        Some(subject) => format!("{counted} {subject}"),
        None if limit.counted_by == CountedBy::Route => counted.to_owned(),
        None => format!("each {counted}"),
    };
    let running = limit.max_running.map(|running| format!("{running} at once"));
    let rate = limit.per_second.map(|rate| {
        let burst = limit.burst.map(|burst| format!(" burst {burst}")).unwrap_or_default();
        format!("{rate}/s{burst}")
    });
    let numbers: Vec<String> = running.into_iter().chain(rate).collect();
    format!("{whom}: {}", numbers.join(" and "))
}
