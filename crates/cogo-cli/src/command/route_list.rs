//! `cogo route list`: how each route is set, and how much of it waits and runs.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use cogo_bus_core::{Bus, COUNT_CAP, Limit, RouteSettings, Standing, standing};
use serde::Serialize;

use crate::{
    command::route::{limits_in_words, state},
    context::Context,
    failure::Failure,
    format,
    output::table,
};

/// Of a route that was never steered, as the bus has it.
const DEFAULT_AGING_MS: i32 = 10_000;

/// A route that is in use or was steered.
#[derive(Debug, Default, Serialize)]
struct Listed {
    route: String,
    paused: bool,
    draining: bool,
    aging_ms: i32,
    changed_at: Option<DateTime<Utc>>,
    changed_by: Option<String>,
    limits: Vec<Limit>,
    /// Not claimed, delayed ones included.
    queued: i64,
    delayed: i64,
    claimed: i64,
    oldest_age_s: Option<f64>,
}

impl Listed {
    fn steered(settings: RouteSettings) -> Self {
        Self {
            route: settings.route.to_string(),
            paused: settings.paused,
            draining: settings.draining,
            aging_ms: settings.aging_ms,
            changed_at: Some(settings.changed_at),
            changed_by: settings.changed_by,
            limits: settings.limits,
            ..Self::default()
        }
    }

    fn unsteered(route: String) -> Self {
        Self { route, aging_ms: DEFAULT_AGING_MS, ..Self::default() }
    }
}

/// Shows every route with unfinished messages and every one that was ever steered.
pub(super) async fn list(context: &Context, bus: &Bus, steered: Vec<RouteSettings>) -> Result<(), Failure> {
    let unfinished = standing(bus.pool()).await?;
    let sum = |of: fn(&Standing) -> i64| unfinished.iter().map(of).sum::<i64>();
    if sum(|route| route.queued) > COUNT_CAP || sum(|route| route.claimed) > COUNT_CAP {
        context
            .output
            .note(&format!("there are more than {COUNT_CAP} unfinished messages: each count is \"at least\""));
    }
    let routes = side_by_side(steered, unfinished);
    if routes.is_empty() && !context.output.is_json() {
        context.output.note("nothing is unfinished, and every route has the default settings");
        return Ok(());
    }
    context.output.either(&routes, || {
        let heads = ["route", "state", ">waiting", ">delayed", ">running", ">oldest", ">aging ms", "limits"];
        table(heads, routes.iter().map(row))
    })
}

/// By service, role and shard, which is a number.
fn side_by_side(steered: Vec<RouteSettings>, unfinished: Vec<Standing>) -> Vec<Listed> {
    let mut routes = BTreeMap::new();
    for settings in steered {
        let route = &settings.route;
        let key = (route.service().to_owned(), route.role().to_owned(), i32::from(route.shard()));
        routes.insert(key, Listed::steered(settings));
    }
    for Standing { service, role, shard, queued, delayed, claimed, oldest_age_s } in unfinished {
        let name = format!("{service}/{role}/{shard}");
        let route = routes.entry((service, role, shard)).or_insert_with(|| Listed::unsteered(name));
        (route.queued, route.delayed, route.claimed, route.oldest_age_s) = (queued, delayed, claimed, oldest_age_s);
    }
    routes.into_values().collect()
}

fn row(listed: &Listed) -> [String; 8] {
    [
        listed.route.clone(),
        state(listed.paused, listed.draining).to_owned(),
        (listed.queued - listed.delayed).max(0).to_string(),
        listed.delayed.to_string(),
        listed.claimed.to_string(),
        format::age(listed.oldest_age_s.and_then(whole_milliseconds)),
        listed.aging_ms.to_string(),
        limits_in_words(&listed.limits),
    ]
}

fn whole_milliseconds(seconds: f64) -> Option<i64> {
    Duration::try_from_secs_f64(seconds).ok().and_then(|age| i64::try_from(age.as_millis()).ok())
}
