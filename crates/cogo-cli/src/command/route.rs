//! `cogo route`: steering one route of the bus, for all processes at once.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cogo_bus_core::{Bus, CountedBy, Limit, RouteSettings};
use cogo_contracts::Route;

use crate::{context::Context, failure::Failure, output::table};

/// Who the bus notes as having changed a route.
const ACTOR: &str = "cogo route";

/// Steer routes of the bus: pause, drain, limit them, or show how they are set.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Routes {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the routes that were ever steered, with their limits.
    #[command(visible_alias = "ls", after_help = "Examples:\n  cogo route list\n  cogo route list --json")]
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
    #[arg(long, value_name = "N", required_unless_present_any = ["rate", "none"], value_parser = clap::value_parser!(u32).range(0..=i64::from(i32::MAX)))]
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
        let bus = context.bus().await?;
        let route = match self.action {
            Action::List => return list(context, &bus).await,
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
        told(context, &bus, &route).await
    }
}

impl SetLimit {
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

async fn list(context: &Context, bus: &Bus) -> Result<(), Failure> {
    let routes = bus.routes().await?;
    if routes.is_empty() && !context.output.is_json() {
        context.output.note("every route has the default settings");
        return Ok(());
    }
    context.output.either(&routes, || rows(&routes))
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
            state(settings).to_owned(),
            settings.aging_ms.to_string(),
            if settings.limits.is_empty() {
                "-".to_owned()
            } else {
                settings.limits.iter().map(in_words).collect::<Vec<_>>().join(", ")
            },
        ]
    });
    table(["route", "state", ">aging ms", "limits"], rows)
}

const fn state(settings: &RouteSettings) -> &'static str {
    match (settings.paused, settings.draining) {
        (true, true) => "paused, draining",
        (true, false) => "paused",
        (false, true) => "draining",
        (false, false) => "open",
    }
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
