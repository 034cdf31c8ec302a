//! `cogo index`: has a tree indexed through the front door, and follows the work.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use cogo_bus_core::Bus;
use cogo_contracts::{BuildReply, EmbedReply, IndexReply, IndexRequest, MessageStatus, Route, Task, Tenant, routes};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    context::Context,
    failure::{Failure, Kind},
    format,
    front_door::{FrontDoor, FrontDoorOptions},
    task_waiter::{require_done, still_running},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Index a directory: passages for retrieval and the code graph.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo index .\n  cogo index /srv/project --collection project --json\n  cogo index . --no-wait"
)]
pub(crate) struct Index {
    /// The directory.
    path: PathBuf,
    /// Name under which the tree is known; the directory's name if absent.
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// Whose tree it is.
    #[arg(long, default_value = "default")]
    tenant: Tenant,
    /// Wait until all of it is done; this is the default.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Return as soon as the task is accepted.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    #[command(flatten)]
    front_door: FrontDoorOptions,
}

/// What the indexing of a tree came to.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Totals {
    files: u64,
    changed: u64,
    removed: u64,
    skipped: u64,
    chunks: u64,
    embedded: u64,
    nodes: u64,
    edges: u64,
    unresolved: u64,
    embedder: Option<String>,
    degraded: bool,
}

impl Index {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let root = Context::absolute(&self.path)?;
        if !root.is_dir() {
            return Err(Failure::new(Kind::Usage, format!("{} is not a directory", root.display())));
        }
        let collection = match self.collection {
            Some(collection) => collection,
            None => name_of(&root)?,
        };
        let request = IndexRequest { collection: collection.clone(), root: root.to_string_lossy().into_owned() };
        let payload =
            serde_json::to_value(&request).map_err(|error| Failure::failed("Encode the request").because(&error))?;
        let door = FrontDoor::open(context, &self.front_door)?;
        let began = Instant::now();
        let id = door.submit(&self.tenant, "index", &payload).await?;
        context.note_sent(id);
        if self.no_wait {
            return context.output.either(&json!({"id": id, "collection": collection}), || id.to_string());
        }
        let bar = context.output.progress(&format!("indexing {collection}"));
        let ended = follow(&door, id, Duration::from_secs(self.timeout), &bar).await;
        bar.finish_and_clear();
        let task = require_done(ended?)?;
        let seconds = began.elapsed().as_secs_f64();
        // only the database has the whole replies; without it the time has to do
        let totals = match context.bus().await {
            Ok(bus) => Some(totals(&bus, &task).await?),
            Err(_) => None,
        };
        let value = json!({"id": id, "collection": collection, "seconds": seconds, "totals": totals});
        context.output.either(&value, || readable(&collection, seconds, totals.as_ref()))?;
        if !context.output.is_json() {
            context.output.note(&format!("task {id}"));
        }
        Ok(())
    }
}

fn name_of(root: &Path) -> Result<String, Failure> {
    let name = root.file_name().map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| Failure::new(Kind::Usage, "The root directory has no name").hint("give one with --collection"))
}

/// Polls the task until nothing of it will change any more.
async fn follow(door: &FrontDoor, id: Uuid, patience: Duration, bar: &ProgressBar) -> Result<Task, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        let task = door.task(id).await?;
        let ended = task.steps.iter().filter(|step| step.done_at.is_some()).count();
        bar.set_length(u64::try_from(task.steps.len()).unwrap_or(u64::MAX));
        bar.set_position(u64::try_from(ended).unwrap_or(u64::MAX));
        if task.status.is_terminal() {
            return Ok(task);
        }
        if Instant::now() >= deadline {
            return Err(still_running(id, patience));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Adds up the replies of the steps.
async fn totals(bus: &Bus, task: &Task) -> Result<Totals, Failure> {
    let mut totals = Totals::default();
    for step in task.steps.iter().filter(|step| step.status == MessageStatus::Done) {
        let Ok(route) = Route::new(&step.service, &step.role, 0) else { continue };
        if ![routes::INDEX, routes::EMBED, routes::BUILD].contains(&route) {
            continue;
        }
        let Some(mut message) = bus.message(step.id).await? else { continue };
        totals.add(&route, message["result"].take());
    }
    Ok(totals)
}

impl Totals {
    /// A reply that has another form than expected counts for nothing.
    fn add(&mut self, route: &Route, reply: serde_json::Value) {
        if *route == routes::INDEX
            && let Ok(reply) = IndexReply::deserialize(&reply)
        {
            self.files += reply.files;
            self.changed += reply.changed;
            self.removed += reply.removed;
            self.skipped += reply.skipped;
        } else if *route == routes::EMBED
            && let Ok(reply) = EmbedReply::deserialize(&reply)
        {
            self.chunks += reply.chunks;
            self.embedded += reply.embedded;
            self.degraded |= reply.degraded;
            self.embedder = Some(reply.embedder);
        } else if *route == routes::BUILD
            && let Ok(reply) = BuildReply::deserialize(&reply)
        {
            self.nodes += reply.nodes;
            self.edges += reply.edges;
            self.unresolved += reply.unresolved;
        }
    }
}

fn readable(collection: &str, seconds: f64, totals: Option<&Totals>) -> String {
    let head = format!("indexed {collection} in {}", format::milliseconds(seconds * 1000.0));
    let Some(totals) = totals else { return head };
    let embedder = totals.embedder.as_deref().unwrap_or("no embedder");
    let degraded = if totals.degraded { " (local, degraded)" } else { "" };
    format!(
        "{head}\nfiles   {} seen, {} changed, {} removed, {} skipped\nchunks  {} written, {} embedded by {embedder}{degraded}\n\
         graph   {} nodes, {} edges, {} unresolved references",
        totals.files,
        totals.changed,
        totals.removed,
        totals.skipped,
        totals.chunks,
        totals.embedded,
        totals.nodes,
        totals.edges,
        totals.unresolved
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_all_steps_add_up() {
        let mut totals = Totals::default();
        totals.add(&routes::INDEX, json!({"files": 9, "changed": 3, "removed": 1, "skipped": 2, "batches": 2}));
        for _ in 0..2 {
            let usage = json!({"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "estimated": true});
            let reply =
                json!({"files": 2, "chunks": 10, "embedded": 8, "embedder": "local", "degraded": true, "usage": usage});
            totals.add(&routes::EMBED, reply);
        }
        totals.add(&routes::BUILD, json!({"files": 9, "changed": 3, "nodes": 40, "edges": 70, "unresolved": 5}));
        totals.add(&routes::BUILD, json!("nonsense"));
        assert_eq!((totals.files, totals.chunks, totals.embedded, totals.edges), (9, 20, 16, 70));
        let text = readable("c", 1.5, Some(&totals));
        assert!(text.contains("9 seen, 3 changed, 1 removed, 2 skipped") && text.contains("local, degraded"));
    }

    #[test]
    fn a_tree_is_named_after_its_directory() {
        assert_eq!(name_of(Path::new("/srv/project")).expect("a name"), "project");
        assert_eq!(name_of(Path::new("/")).expect_err("none").kind, Kind::Usage);
    }
}
