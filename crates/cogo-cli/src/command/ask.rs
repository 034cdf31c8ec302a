//! `cogo ask`: a question through the front door, answered with its evidence.

use std::{
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use cogo_contracts::{ChatMode, ChatReply, ChatRequest, Citation, TaskStatus, Tenant};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    context::Context,
    failure::{Failure, about_file},
    format,
    front_door::{FrontDoor, FrontDoorOptions, Outcome},
    output::{Look, Output},
};

/// A longer citation is cut for people; `--json` has all of it.
const SHOWN_LINES: usize = 12;

/// Ask a question about the indexed trees and print the answer with its citations.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo ask \"What happens when a lease expires?\"\n  cogo ask \"Who imports bus-core?\" --collection cogo --json\n  cogo ask \"Where does it start?\" --require-citation --verify ."
)]
pub(crate) struct Ask {
    /// The question, in words.
    question: String,
    /// Only this collection; all of the tenant's if absent.
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// Who asks.
    #[arg(long, default_value = "default")]
    tenant: Tenant,
    /// Seconds to wait for the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Fail when the answer has no citation.
    #[arg(long)]
    require_citation: bool,
    /// Look every citation up in the files below this directory; fail when one does not stand there.
    #[arg(long, value_name = "DIR")]
    verify: Option<PathBuf>,
    #[command(flatten)]
    front_door: FrontDoorOptions,
}

impl Ask {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let door = FrontDoor::open(context, &self.front_door)?;
        let request = ChatRequest { question: self.question, collection: self.collection };
        let spinner = context.output.spinner("asking");
        let began = Instant::now();
        let id = question(&door, &self.tenant, &request).await?;
        context.note_sent(id);
        let answered = answer(&door, id, Duration::from_secs(self.timeout)).await;
        let total_ms = began.elapsed().as_secs_f64() * 1000.0;
        spinner.finish_and_clear();
        let reply = answered?;

        let value = with_task(&reply, id, total_ms)?;
        context.output.either(&value, || readable(&context.output, &reply))?;
        if !context.output.is_json() {
            let degraded = reply.degraded.as_deref().map_or_else(String::new, |why| format!(", degraded: {why}"));
            let model = reply.model.as_deref().map_or_else(String::new, |model| format!(", model {model}"));
            context.output.note(&format!(
                "\nmode {}{model}{degraded}, {}, task {id}",
                mode(reply.mode),
                format::milliseconds(total_ms)
            ));
        }
        if let Some(root) = &self.verify {
            verify(&reply.citations, root)?;
            context.output.note(&format!("verified {} citations in {}", reply.citations.len(), root.display()));
        }
        if self.require_citation && reply.citations.is_empty() {
            return Err(Failure::failed("The answer has no citation").hint("is the tree indexed? `cogo index PATH`"));
        }
        Ok(())
    }
}

/// Asks; answers the task's id.
pub(crate) async fn question(door: &FrontDoor, tenant: &Tenant, request: &ChatRequest) -> Result<Uuid, Failure> {
    let payload =
        serde_json::to_value(request).map_err(|error| Failure::failed("Encode the question").because(&error))?;
    door.submit(tenant, "ask", &payload).await
}

/// Waits for the reply to what was asked.
pub(crate) async fn answer(door: &FrontDoor, id: Uuid, patience: Duration) -> Result<ChatReply, Failure> {
    require_reply(id, door.outcome(id, patience).await?)
}

/// Every citation is what stands in its file at its lines.
fn verify(citations: &[Citation], root: &Path) -> Result<(), Failure> {
    for citation in citations {
        let place = format!("{}:{}-{}", citation.path, citation.start, citation.end);
        let path = Path::new(&citation.path);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Failure::failed(format!("The citation {place} leads out of its tree")));
        }
        let path = root.join(path);
        let text = std::fs::read(&path).map_err(about_file("read", &path))?;
        let text = String::from_utf8_lossy(&text);
        let (skipped, end) = (citation.start.saturating_sub(1), citation.end);
        let count = usize::try_from(end.saturating_sub(skipped)).unwrap_or(usize::MAX);
        let lines: Vec<&str> = text.lines().skip(usize::try_from(skipped).unwrap_or(usize::MAX)).take(count).collect();
        let cited: Vec<&str> = citation.text.lines().collect();
        let cited = cited.join("\n");
        if cited.trim().is_empty() || !lines.join("\n").contains(cited.trim()) {
            return Err(Failure::failed(format!("The citation {place} is not what stands there"))
                .hint("the file has changed since; `cogo index` brings the index up to date"));
        }
    }
    Ok(())
}

fn require_reply(id: Uuid, outcome: Outcome) -> Result<ChatReply, Failure> {
    let hint = format!("`cogo trace {id}` shows the steps");
    if outcome.status != TaskStatus::Done {
        let what = if outcome.status == TaskStatus::Cancelled { "was taken back" } else { "failed" };
        return Err(Failure::failed(format!("Task {id} {what}")).cause(outcome.error.unwrap_or_default()).hint(hint));
    }
    serde_json::from_value(outcome.result.unwrap_or_default())
        .map_err(|error| Failure::failed(format!("Task {id} ended without an answer")).because(&error).hint(hint))
}

fn with_task(reply: &ChatReply, id: Uuid, total_ms: f64) -> Result<Value, Failure> {
    let mut value =
        serde_json::to_value(reply).map_err(|error| Failure::failed("Encode the answer").because(&error))?;
    value["task"] = json!(id);
    value["total_ms"] = json!(total_ms);
    Ok(value)
}

fn readable(output: &Output, reply: &ChatReply) -> String {
    let mut text = format::harmless(reply.answer.trim());
    let mut gap = "\n\n";
    for (index, citation) in reply.citations.iter().enumerate() {
        // an extractive answer consists of the cited lines, which need not be shown twice
        let shown = if reply.answer.contains(citation.text.trim()) { 0 } else { SHOWN_LINES };
        text.push_str(gap);
        text.push_str(&cited(output, index + 1, citation, shown));
        gap = if shown == 0 { "\n" } else { "\n\n" };
    }
    text
}

fn cited(output: &Output, number: usize, citation: &Citation, shown: usize) -> String {
    let head = format!("[{number}] {}:{}-{}", citation.path, citation.start, citation.end);
    let mut lines = vec![output.paint.paint(Look::Bold, &format::one_line(&head))];
    let all = citation.text.lines().count();
    for line in citation.text.lines().take(shown) {
        lines.push(output.paint.paint(Look::Dim, &format!("    {}", format::harmless(line))));
    }
    if shown > 0 && all > shown {
        lines.push(output.paint.paint(Look::Dim, &format!("    … {} more lines", all - shown)));
    }
    lines.join("\n")
}

fn mode(mode: ChatMode) -> &'static str {
    match mode {
        ChatMode::Graph => "graph",
        ChatMode::Extractive => "extractive",
        ChatMode::Llm => "llm",
        ChatMode::Abstain => "abstain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn citations_are_numbered_and_long_ones_cut() {
        let text: Vec<String> = (1..=14).map(|line| format!("line {line}\u{1b}[31m")).collect();
        let citation = Citation {
            path: "src/a.rs".to_owned(),
            start: 3,
            end: 16,
            collection: "c".to_owned(),
            sha256: String::new(),
            text: text.join("\n"),
        };
        let shown = cited(&Output::new(true), 2, &citation, SHOWN_LINES);
        assert!(shown.contains("[2] src/a.rs:3-16"));
        assert!(shown.contains("    line 12[31m") && !shown.contains("line 13"));
        assert!(shown.ends_with("… 2 more lines"));
        assert!(!cited(&Output::new(true), 2, &citation, 0).contains('\n'));
    }

    #[test]
    fn citations_are_held_against_the_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("a.rs"), "one\r\n  two\nthree\n").expect("write");
        let citation = |path: &str, start, end, text: &str| Citation {
            path: path.to_owned(),
            start,
            end,
            collection: "c".to_owned(),
            sha256: String::new(),
            text: text.to_owned(),
        };
        let check = |citation: Citation| verify(&[citation], directory.path());
        assert!(check(citation("a.rs", 1, 2, "one\n  two\n")).is_ok());
        assert!(check(citation("a.rs", 3, 3, "three")).is_ok());
        for wrong in [
            citation("a.rs", 1, 1, "three"),
            citation("a.rs", 7, 9, "one"),
            citation("a.rs", 1, 1, "  "),
            citation("b.rs", 1, 1, "one"),
            citation("../a.rs", 1, 1, "one"),
            citation("/a.rs", 1, 1, "one"),
        ] {
            assert!(check(wrong.clone()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_failed_task_is_a_failure_with_its_error() {
        let outcome = Outcome { status: TaskStatus::Failed, result: None, error: Some("too long".to_owned()) };
        let failure = require_reply(Uuid::nil(), outcome).expect_err("it failed");
        assert!(failure.text().contains("cause: too long"));
    }
}
