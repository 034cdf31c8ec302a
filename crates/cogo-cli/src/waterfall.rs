//! A task as a waterfall of text: a tree of steps, each with a bar on a common time axis.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use cogo_bus_core::Attempt;
use cogo_contracts::{MessageStatus, Step, Task, TaskStatus};
use uuid::Uuid;

use crate::{
    attempts,
    format::{self, milliseconds_between},
    output::{Look, Paint},
};

/// Waiting is a light shade and running a full block, so that no colour is needed to tell them apart.
const WAIT: char = '░';
const RUN: char = '█';
/// Stands where a step goes on.
const OPEN_END: char = '▶';
const LONGEST_LABEL: usize = 34;
const SHORTEST_LABEL: usize = 14;
const SHORTEST_BAR: usize = 8;
/// Two columns of times, each as wide as `999.9 ms` and a gap.
const TIMES: usize = 22;

/// One step, placed on the axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) depth: usize,
    label: String,
    status: MessageStatus,
    attempts: i16,
    /// From the start of the task to its enqueueing, in ms.
    begin_ms: f64,
    /// From enqueueing to the last claim, earlier attempts included.
    pub(crate) wait_ms: f64,
    /// From the last claim to the end; none before a claim.
    pub(crate) run_ms: Option<f64>,
    is_open: bool,
    error: Option<String>,
    /// Each attempt, first to last, as far as it was asked for.
    pub(crate) history: Vec<Attempt>,
}

/// A task, ready to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waterfall {
    id: Uuid,
    tenant: String,
    status: TaskStatus,
    pub(crate) total_ms: f64,
    now: DateTime<Utc>,
    pub(crate) rows: Vec<Row>,
}

impl Waterfall {
    /// Places every step; those that have not ended last until `now`.
    pub(crate) fn of(task: &Task, now: DateTime<Utc>) -> Self {
        let end = task.finished_at.unwrap_or(now);
        let mut rows = Vec::new();
        for (step, depth) in in_tree_order(&task.steps) {
            rows.push(row(step, depth, task.created_at, now));
        }
        let total_ms = milliseconds_between(task.created_at, end);
        Self { id: task.id, tenant: task.tenant.clone(), status: task.status, total_ms, now, rows }
    }

    /// With the attempts of its steps.
    pub(crate) fn with_histories(mut self, mut histories: HashMap<Uuid, Vec<Attempt>>) -> Self {
        for row in &mut self.rows {
            row.history = histories.remove(&row.id).unwrap_or_default();
        }
        self
    }
}

fn row(step: &Step, depth: usize, begin: DateTime<Utc>, now: DateTime<Utc>) -> Row {
    let shard = if step.shard == 0 { String::new() } else { format!("/{}", step.shard) };
    let replay = if step.replay_of.is_some() { " (replay)" } else { "" };
    let end = step.done_at.unwrap_or(now);
    // a step that is queued again waits from its enqueueing on; the claim it lost is not shown
    let claimed = step.claimed_at.filter(|_| step.status != MessageStatus::Queued);
    Row {
        id: step.id,
        depth,
        label: format!("{}/{}{shard}{replay}", step.service, step.role),
        status: step.status,
        attempts: step.attempts,
        begin_ms: milliseconds_between(begin, step.created_at),
        wait_ms: milliseconds_between(step.created_at, claimed.unwrap_or(end)),
        run_ms: claimed.map(|claimed| milliseconds_between(claimed, end)),
        is_open: step.done_at.is_none(),
        error: step.error.clone(),
        history: Vec::new(),
    }
}

/// Parents before children, siblings by age; a replay stands below the dead letter that it runs again.
fn in_tree_order(steps: &[Step]) -> Vec<(&Step, usize)> {
    let above = |step: &Step| step.parent_id.or(step.replay_of).filter(|id| steps.iter().any(|other| other.id == *id));
    let mut pending: Vec<(&Step, usize)> =
        steps.iter().rev().filter(|step| above(step).is_none()).map(|step| (step, 0)).collect();
    let mut ordered = Vec::new();
    while let Some((step, depth)) = pending.pop() {
        ordered.push((step, depth));
        pending
            .extend(steps.iter().rev().filter(|child| above(child) == Some(step.id)).map(|child| (child, depth + 1)));
    }
    ordered
}

/// Draws the task into lines of at most `width` columns.
pub(crate) fn render(waterfall: &Waterfall, width: usize, paint: Paint) -> String {
    let columns = Columns::fit(waterfall, width);
    let status = task_word(waterfall.status);
    let steps = if waterfall.rows.len() == 1 { "1 step".to_owned() } else { format!("{} steps", waterfall.rows.len()) };
    let total = format::milliseconds(waterfall.total_ms);
    let mut lines = vec![
        format!("task {}", paint.paint(Look::Bold, &waterfall.id.to_string())),
        format!(
            "tenant {}, {} in {total}, {steps}",
            waterfall.tenant,
            paint.paint(task_look(waterfall.status), status)
        ),
        String::new(),
        columns.axis(&total),
    ];
    for row in &waterfall.rows {
        lines.push(columns.line(row, waterfall.total_ms, paint));
        lines.extend(below(row, waterfall.now, width, paint));
    }
    lines.push(format!("{WAIT} waits  {RUN} runs  {OPEN_END} goes on"));
    let trimmed: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    trimmed.join("\n")
}

/// What does not fit beside the bar: each attempt if there were several, and the last error unless the last of them tells it.
fn below(row: &Row, now: DateTime<Utc>, width: usize, paint: Paint) -> Vec<String> {
    let indent = "  ".repeat(row.depth + 1);
    let attempts = if row.history.len() > 1 { attempts::lines(&row.history, now) } else { Vec::new() };
    let mut lines: Vec<String> = attempts
        .iter()
        .map(|attempt| format::shortened(attempt, width.saturating_sub(indent.len())))
        .map(|attempt| format!("{indent}{}", paint.paint(Look::Dim, &attempt)))
        .collect();
    let is_told = !lines.is_empty() && row.history.last().is_some_and(|last| last.error == row.error);
    if let Some(error) = row.error.as_ref().filter(|_| !is_told) {
        let text = format::shortened(error, width.saturating_sub(indent.len() + 7));
        lines.push(format!("{indent}{} {text}", paint.paint(Look::Bad, "error:")));
    }
    lines
}

/// Widths of the columns: label, status, bar, times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Columns {
    label: usize,
    status: usize,
    bar: usize,
    has_times: bool,
}

impl Columns {
    fn fit(waterfall: &Waterfall, width: usize) -> Self {
        let widest = |of: fn(&Row) -> usize| waterfall.rows.iter().map(of).max().unwrap_or(0);
        let wanted = widest(|row| row.depth * 2 + row.label.chars().count()).clamp(SHORTEST_LABEL, LONGEST_LABEL);
        let status = widest(|row| word(row).chars().count());
        let bar = |label: usize, times: usize| width.saturating_sub(label + status + times + 2);
        let mut columns = Self { label: wanted, status, bar: bar(wanted, TIMES), has_times: true };
        if columns.bar < 2 * SHORTEST_BAR {
            // labels give way first, then the times
            let missing = 2 * SHORTEST_BAR - columns.bar;
            columns.label = wanted.saturating_sub(missing).max(SHORTEST_LABEL);
            columns.bar = bar(columns.label, TIMES);
        }
        if columns.bar < SHORTEST_BAR {
            columns.has_times = false;
            columns.bar = bar(columns.label, 0).max(SHORTEST_BAR);
        }
        columns
    }

    fn axis(self, total: &str) -> String {
        let indent = " ".repeat(self.label + self.status + 2);
        let times = if self.has_times { format!("{:>11}{:>11}", "wait", "run") } else { String::new() };
        let room = self.bar.saturating_sub(1);
        format!("{indent}0{total:>room$}{times}")
    }

    fn line(self, row: &Row, total_ms: f64, paint: Paint) -> String {
        let indented = format!("{}{}", "  ".repeat(row.depth), row.label);
        let label = format::shortened(&indented, self.label);
        let status = format!("{:<width$}", word(row), width = self.status);
        let status = paint.paint(row_look(row.status), &status);
        let bar = bar(row, total_ms, self.bar);
        let times = if self.has_times {
            let run = row.run_ms.map_or_else(|| "-".to_owned(), format::milliseconds);
            format!("{:>11}{run:>11}", format::milliseconds(row.wait_ms))
        } else {
            String::new()
        };
        format!("{label:<width$} {status} {bar}{times}", width = self.label)
    }
}

fn bar(row: &Row, total_ms: f64, width: usize) -> String {
    let column = |at_ms: f64| column(at_ms, total_ms, width);
    let (begin, claimed) = (column(row.begin_ms), column(row.begin_ms + row.wait_ms));
    let end = column(row.begin_ms + row.wait_ms + row.run_ms.unwrap_or(0.0));
    // the shortest step is still seen, also at the right edge
    let begin = begin.min(width - 1);
    let end = end.clamp(begin + 1, width);
    let runs_from = if row.run_ms.is_some() { claimed.clamp(begin, end - 1) } else { end };
    let mut cells: Vec<char> = (0..width)
        .map(|cell| match cell {
            cell if cell < begin || cell >= end => ' ',
            cell if cell < runs_from => WAIT,
            _ => RUN,
        })
        .collect();
    if row.is_open {
        cells[end - 1] = OPEN_END;
    }
    cells.into_iter().collect()
}

/// The cell in which a moment falls, found by counting so that no number has to be cut.
fn column(at_ms: f64, total_ms: f64, width: usize) -> usize {
    if total_ms <= 0.0 {
        return 0;
    }
    let cells = f64::from(u16::try_from(width).unwrap_or(u16::MAX));
    let reached = |cell: &u16| f64::from(*cell) + 0.5 <= at_ms / total_ms * cells;
    (0..u16::try_from(width).unwrap_or(u16::MAX)).take_while(reached).count()
}

fn word(row: &Row) -> String {
    let word = match row.status {
        MessageStatus::Queued => "queued",
        MessageStatus::Claimed => "running",
        MessageStatus::Done => "done",
        MessageStatus::Failed => "failed",
        MessageStatus::Cancelled => "cancelled",
    };
    if row.attempts > 1 { format!("{word} ×{}", row.attempts) } else { word.to_owned() }
}

fn task_word(status: TaskStatus) -> &'static str {
    match status {
        TaskStatus::Queued => "queued",
        TaskStatus::Running => "running",
        TaskStatus::Done => "done",
        TaskStatus::Failed => "failed",
        TaskStatus::Cancelled => "cancelled",
    }
}

fn task_look(status: TaskStatus) -> Look {
    match status {
        TaskStatus::Done => Look::Good,
        TaskStatus::Failed => Look::Bad,
        TaskStatus::Queued | TaskStatus::Running | TaskStatus::Cancelled => Look::Warning,
    }
}

fn row_look(status: MessageStatus) -> Look {
    match status {
        MessageStatus::Done => Look::Good,
        MessageStatus::Failed => Look::Bad,
        MessageStatus::Queued | MessageStatus::Claimed | MessageStatus::Cancelled => Look::Warning,
    }
}

#[cfg(test)]
#[path = "waterfall_tests.rs"]
mod tests;
