//! The four ways of a message, each in a few lines: to one agent, to whoever claims first, to everyone, and there and back.
//!
//! `cargo run -p cogo-registry-core --example routing -- postgres://…` tries them on a migrated database. `docs/registry.md`
//! shows these functions, and a test runs them.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::{error::Error, time::Duration};

use cogo_bus_core::{Bus, NewBroadcast, Reply, RequestError, StartAt, Subscription, WakeUps};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_registry_core::{Destination, Follower, Kv, Query, Registry, View, ViewSettings, WhenGone};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

const EMBED: Route = Route::constant("rag", "embed");

/// To the owner of one slot. While it lives nobody else gets the message; `WhenGone` says what happens if it does not.
pub(crate) async fn direct(bus: &Bus, view: &View, tenant: &Tenant) -> Result<Uuid, Box<dyn Error>> {
    let destination = view.direct("rag-embed/0", &EMBED, WhenGone::Refuse)?;
    Ok(bus.enqueue(&message(destination, tenant)).await?.id)
}

/// To whoever claims first, as long as a healthy agent claims there at all; `least_busy` would choose one by its load.
pub(crate) async fn load_balanced(bus: &Bus, view: &View, tenant: &Tenant) -> Result<Uuid, Box<dyn Error>> {
    let destination = view.load_balanced(&EMBED)?;
    Ok(bus.enqueue(&message(destination, tenant)).await?.id)
}

/// To every consumer of a topic: one row, which each of them reads at its own pace.
pub(crate) async fn broadcast(bus: &Bus, hints: &WakeUps, tenant: &Tenant) -> Result<Vec<Value>, cogo_bus_core::Error> {
    let reader = Subscription::new("kg-builder", "models.changed");
    bus.subscribe(&reader, StartAt::Latest).await?;
    bus.publish(&NewBroadcast::new("models.changed", tenant.clone(), json!({"model": "small"}))).await?;
    let batch = bus.next_broadcasts(&reader, 100, hints, Duration::from_secs(30)).await?; // waits for the first
    // work first: what is not acknowledged is read again
    bus.acknowledge_broadcasts(&reader, &batch.from, &batch.through).await?;
    Ok(batch.broadcasts.into_iter().map(|broadcast| broadcast.payload).collect())
}

/// There and back. After the deadline nobody starts it any more; an answer that comes too late is recorded on the message.
pub(crate) async fn request(bus: &Bus, hints: &WakeUps, tenant: &Tenant) -> Result<Reply, RequestError> {
    let question = NewMessage::new(EMBED, Some(tenant.clone()), json!({"documents": []}));
    bus.request(&question, Duration::from_secs(10), hints).await
}

fn message(destination: Destination, tenant: &Tenant) -> NewMessage {
    let payload = json!({"documents": []});
    NewMessage {
        target_instance: destination.target_instance,
        ..NewMessage::new(destination.route, Some(tenant.clone()), payload)
    }
}

/// Lookups in memory; each answer says for which version of the registry it is true and how old it is.
pub(crate) fn lookups(view: &View) -> Result<Vec<String>, Box<dyn Error>> {
    let owner = view.resolve("rag-embed/0")?;
    println!("{:?} at version {}, {:?} old", owner.value.map(|entry| entry.id.holder()), owner.version, owner.age);
    let query = Query::capability("route:rag/embed/0").version(">=1, <2".parse()?).limit(10);
    let all = view.discover(&query)?.value.len();
    let healthy = view.find_healthy(&query)?.value;
    println!("{all} fit, {} of them are healthy", healthy.len());
    Ok(healthy.iter().map(|entry| entry.id.instance()).collect())
}

/// A value that agents share for a while, changed only if nobody else did.
pub(crate) async fn shared_value(pool: PgPool) -> Result<bool, sqlx::Error> {
    let kv = Kv::new(pool, "rag");
    kv.put("cursor", &json!(1), Some(Duration::from_secs(3600))).await?;
    let Some(held) = kv.get_within("cursor", Duration::from_secs(5)).await? else { return Ok(false) };
    Ok(kv.compare_and_set("cursor", held.version, &json!(2), None).await?.is_some())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("give the address of a migrated database")?;
    let pool = PgPool::connect(&url).await?;
    let (bus, registry) = (Bus::new(pool.clone()), Registry::new(pool.clone()));
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (follower, view) = Follower::new(&registry, ViewSettings::default());
    tasks.spawn(follower.run(stop.clone()));
    view.wait_for(registry.snapshot().await?.version()).await;
    let hints = WakeUps::default();
    tasks.spawn(hints.clone().run(pool.clone(), stop.clone()));

    let tenant: Tenant = "default".parse()?;
    println!("healthy: {:?}", lookups(&view)?);
    println!("direct: {:?}", direct(&bus, &view, &tenant).await.map_err(|error| error.to_string()));
    println!("load balanced: {:?}", load_balanced(&bus, &view, &tenant).await.map_err(|error| error.to_string()));
    println!("broadcast: {:?}", broadcast(&bus, &hints, &tenant).await?);
    println!("request: {:?}", request(&bus, &hints, &tenant).await.map_err(|error| error.to_string()));
    println!("value was ours to change: {}", shared_value(pool).await?);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}
