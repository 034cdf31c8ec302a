//! The handler of rag/index.

use anyhow::Context;
use cogo_contracts::{BuildRequest, EmbedRequest, IndexReply, IndexRequest, NewMessage, Route, routes};
use cogo_rag_core::{MAX_BATCH_FILES, Plan, WalkLimits, plan, remove_files, walk};
use cogo_service_runtime::{AllowedRoots, Claim, Handler, HandlerError};
use serde::Serialize;
use sqlx::PgPool;
use tracing::warn;

/// Behind questions, which a person waits for.
const PRIORITY: i16 = 200;

/// Walks a tree and sends what differs from the index.
pub struct Index {
    /// Where the index stands.
    pub pool: PgPool,
    /// Directories below which trees may be indexed.
    pub allowed_roots: AllowedRoots,
}

impl Handler for Index {
    const ROUTE: Route = routes::INDEX;
    type Request = IndexRequest;
    type Reply = IndexReply;

    async fn handle(&self, request: IndexRequest, claim: &Claim) -> Result<IndexReply, HandlerError> {
        if request.collection.trim().is_empty() || request.collection.len() > 200 {
            return Err(HandlerError::rejected("collection must be a name of 1 to 200 bytes"));
        }
        let root = self.allowed_roots.resolve(&request.root).map_err(HandlerError::reject)?;
        let walk_root = root.clone();
        let walked = tokio::task::spawn_blocking(move || walk(&walk_root, WalkLimits::default()))
            .await
            .context("walk the tree")?
            .map_err(HandlerError::reject)?;
        for error in &walked.errors {
            warn!(error, "file passed over");
        }
        let plan = plan(&self.pool, claim.tenant(), &request.collection, &walked.files).await.context("compare")?;
        let mut removed = 0;
        for batch in plan.removed.chunks(MAX_BATCH_FILES) {
            removed += remove_files(&self.pool, claim.tenant(), &request.collection, batch).await.context("remove")?;
        }
        let root = root.to_string_lossy().into_owned();
        let messages = follow_ups(&request.collection, &root, &plan).context("write the follow-ups")?;
        let reply = IndexReply {
            files: walked.files.len() as u64,
            changed: plan.changed.len() as u64,
            removed: removed as u64,
            skipped: (walked.skipped + walked.failed) as u64,
            batches: messages.len() as u64,
        };
        claim.summarize(format!("{} files, {} changed, {} removed", reply.files, reply.changed, reply.removed));
        for message in messages {
            claim.send(message);
        }
        Ok(reply)
    }
}

/// One message for each batch of changed files, and one for the graph. Without changes a batch without files lets
/// rag-embed finish vectors that an earlier run left behind.
fn follow_ups(collection: &str, root: &str, plan: &Plan) -> Result<Vec<NewMessage>, serde_json::Error> {
    let embed = |paths: &[String]| {
        let request = EmbedRequest { collection: collection.to_owned(), root: root.to_owned(), paths: paths.to_vec() };
        follow_up(routes::EMBED, &request)
    };
    let mut messages: Vec<NewMessage> = plan.changed.chunks(MAX_BATCH_FILES).map(embed).collect::<Result<_, _>>()?;
    if messages.is_empty() {
        messages.push(embed(&[])?);
    }
    let build = BuildRequest { repo: collection.to_owned(), root: root.to_owned() };
    messages.push(follow_up(routes::BUILD, &build)?);
    Ok(messages)
}

fn follow_up(route: Route, request: &impl Serialize) -> Result<NewMessage, serde_json::Error> {
    let mut message = NewMessage::follow_up(route, request)?;
    message.priority = Some(PRIORITY);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_go_in_batches_and_the_graph_follows() {
        let changed = (0..MAX_BATCH_FILES + 1).map(|number| format!("{number}.rs")).collect();
        let plan = Plan { changed, ..Plan::default() };
        let messages = follow_ups("repo", "/repo", &plan).unwrap();
        let routes: Vec<String> = messages.iter().map(|message| message.route.to_string()).collect();
        assert_eq!(routes, ["rag/embed/0", "rag/embed/0", "kg/build/0"]);
        assert_eq!(messages[1].payload["paths"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn unchanged_tree_sends_no_file() {
        let messages = follow_ups("repo", "/repo", &Plan::default()).unwrap();
        assert_eq!(messages[0].payload["paths"], serde_json::json!([]));
    }
}
