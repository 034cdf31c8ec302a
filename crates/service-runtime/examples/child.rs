//! An agent of level 3 in Rust: it stands in the registry through its parent, obeys orders and works on its own route.
//!
//! With a fleet up: `export COGO_AGENT_KEY=$(cogo key issue word-counter) DATABASE_URL=…`, then
//! `cargo run -p cogo-service-runtime --example child`, and to see it: `cogo agents`, `cogo tree`,
//! `cogo send text count --data '{"text":"three small words"}' --wait`, `cogo suspend word-counter`, `cogo drain word-counter`.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a program to read and to try, not a service")]

use anyhow::Context;
use cogo_bus_core::{Bus, Claimed};
use cogo_contracts::Route;
use cogo_db::PoolSettings;
use cogo_registry_core::{AgentKey, detect_location};
use cogo_service_runtime::{ChildClient, ChildIntroduction, ChildWorker, ConnectionSettings, HandlerError};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ROUTE: Route = Route::constant("text", "count");

async fn count(message: Claimed) -> Result<Value, HandlerError> {
    let text = message.payload["text"].as_str().ok_or_else(|| HandlerError::rejected("There is no text"))?;
    Ok(json!({"words": text.split_whitespace().count()}))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let parent = std::env::var("PARENT").unwrap_or_else(|_absent| "ws://127.0.0.1:3013/children".to_owned());
    let key = AgentKey::parse(&std::env::var("COGO_AGENT_KEY").context("read COGO_AGENT_KEY")?)?;
    let url = std::env::var("DATABASE_URL").context("read DATABASE_URL")?;
    let introduction = ChildIntroduction {
        name: "word-counter".to_owned(),
        slot: 0,
        version: semver::Version::new(1, 0, 0),
        // what others look for, and the route by which they reach it
        capabilities: vec!["word-count".to_owned(), format!("route:{ROUTE}")],
        tags: Vec::new(),
        location: Some(detect_location(|name| std::env::var(name).ok())),
    };
    let (client, mut handle) = ChildClient::new(&parent, introduction, key, ConnectionSettings::default())?;
    let bus = Bus::new(cogo_db::connect(&PoolSettings::new(&url, "word-counter"))?);
    let worker = ChildWorker::new(bus, ROUTE, "word-counter/0", &handle).at_once(4);
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let (work, connection) = (tokio::spawn(worker.run(count, stop.clone())), tokio::spawn(client.run(end.clone())));
    loop {
        tokio::select! {
            Some(event) = handle.events.recv() => println!("{event}"),
            Ok(()) = handle.orders.changed() => println!("told to {}", *handle.orders.borrow_and_update()),
            Ok(()) = handle.trouble.changed() => println!("{:?}", *handle.trouble.borrow_and_update()),
            // finishes what it has and then leaves the registry; ends at once where no parent is
            _ = tokio::signal::ctrl_c() => if stop.is_cancelled() { end.cancel() } else { stop.cancel() },
            else => break,
        }
    }
    work.await?;
    println!("ended: {:?}", connection.await?);
    Ok(())
}
