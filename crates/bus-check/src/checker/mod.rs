//! One checker: a history and the rows at its end in, violated invariants out. Pure; it asks no database.

mod claims;
mod completions;
mod content;
mod endings;
mod groups;
mod index;
mod limits;
mod retention;
mod sending;
mod slots;
mod spending;
mod tenants;
#[cfg(test)]
mod tests;
mod times;
mod waits;

use std::fmt;

use uuid::Uuid;

use crate::{history::Call, rows::Rows};

use index::Index;

/// What must hold, by the names of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// An acknowledged enqueue is never lost.
    I1,
    /// Every message reaches a terminal state once faults stop.
    I2,
    /// At most one recorded completion, by the owner of the lease.
    I3,
    /// One effect per tenant and idempotency key, and none without a sender.
    I4,
    /// Nothing starts after its time to live; time is the database's.
    I5,
    /// A task's spend stays within its budget.
    I6,
    /// No row crosses tenants.
    I7,
    /// One owner per agent slot.
    I8,
    /// Retention never removes unfinished rows.
    I9,
    /// Counters shown are rows in the table.
    I10,
    /// Messages of a group run in order, one at a time.
    Group,
    /// What awaits others starts after they have ended.
    Awaits,
    /// No more run at once than a limit says.
    Limit,
}

impl Invariant {
    fn text(self) -> &'static str {
        match self {
            Self::I1 => "I1 an acknowledged enqueue is never lost",
            Self::I2 => "I2 every message ends once faults stop",
            Self::I3 => "I3 at most one recorded completion, by the owner of the lease",
            Self::I4 => "I4 one effect per tenant and idempotency key",
            Self::I5 => "I5 nothing starts after expires_at, by the clock of the database",
            Self::I6 => "I6 a task's spend is within its budget",
            Self::I7 => "I7 no row crosses tenants",
            Self::I8 => "I8 one owner per agent slot",
            Self::I9 => "I9 retention never removes unfinished rows",
            Self::I10 => "I10 counters shown are rows in the table",
            Self::Group => "a group runs in order, one at a time",
            Self::Limit => "no more run at once than a limit says",
            Self::Awaits => "what awaits others starts after they have ended",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

/// What a violation counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Something that was acknowledged is gone, or never ends.
    Lost,
    /// Something took effect twice.
    Duplicated,
    /// Something was accepted from one who no longer owned it.
    Stale,
    /// Anything else.
    Other,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Which promise.
    pub invariant: Invariant,
    /// What it counts as.
    pub harm: Harm,
    /// The message that it happened to, if one.
    pub message: Option<Uuid>,
    /// What is wrong.
    pub what: String,
    /// The calls that show it.
    pub calls: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.invariant, self.what)?;
        if let Some(message) = self.message {
            write!(formatter, " (message {message})")?;
        }
        for call in &self.calls {
            write!(formatter, "\n    {call}")?;
        }
        Ok(())
    }
}

/// In which state the rows were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Faults had stopped and workers had had their time: whatever is unfinished is lost.
    Drained,
    /// Work went on.
    UnderWay,
}

/// What the checker found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Broken promises, by invariant.
    pub violations: Vec<Violation>,
    /// Invariants that this history says nothing about, and why.
    pub not_applicable: Vec<(Invariant, &'static str)>,
    /// Calls that were looked at.
    pub calls: usize,
    /// Calls of which nobody knows the outcome.
    pub unknown: usize,
    /// Rows that were looked at.
    pub messages: usize,
}

impl Report {
    /// How many violations count as this.
    #[must_use]
    pub fn count(&self, harm: Harm) -> usize {
        self.violations.iter().filter(|violation| violation.harm == harm).count()
    }

    /// Whether an invariant was broken.
    #[must_use]
    pub fn breaks(&self, invariant: Invariant) -> bool {
        self.violations.iter().any(|violation| violation.invariant == invariant)
    }

    fn add(
        &mut self,
        invariant: Invariant,
        harm: Harm,
        message: Option<Uuid>,
        what: impl Into<String>,
        calls: &[&Call],
    ) {
        let calls = calls.iter().map(ToString::to_string).collect();
        self.violations.push(Violation { invariant, harm, message, what: what.into(), calls });
    }
}

/// More would not be read.
const MOST_SHOWN: usize = 12;

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { violations, calls, unknown, messages, .. } = self;
        writeln!(
            formatter,
            "{} violations in {calls} calls ({unknown} unknown) and {messages} rows",
            violations.len()
        )?;
        for violation in violations.iter().take(MOST_SHOWN) {
            writeln!(formatter, "- {violation}")?;
        }
        if violations.len() > MOST_SHOWN {
            writeln!(formatter, "- and {} more", violations.len() - MOST_SHOWN)?;
        }
        Ok(())
    }
}

/// Checks a complete history, with every client that wrote to this database in it, against the rows at its end.
#[must_use]
pub fn check(calls: &[Call], rows: &Rows, rest: Rest) -> Report {
    let unknown = calls.iter().filter(|call| call.is_unknown()).count();
    let mut report = Report { calls: calls.len(), unknown, messages: rows.messages.len(), ..Report::default() };
    let index = Index::new(calls, rows);
    sending::check(&index, &mut report);
    content::check(&index, &mut report);
    retention::check(&index, &mut report);
    endings::check(&index, rest, &mut report);
    claims::check(&index, &mut report);
    completions::check(&index, &mut report);
    times::check(&index, &mut report);
    groups::check(&index, &mut report);
    waits::check(&index, &mut report);
    limits::check(&index, &mut report);
    spending::check(&index, &mut report);
    tenants::check(&index, &mut report);
    slots::check(&index, &mut report);
    counters(rows, &mut report);
    places(rows, rest, &mut report);
    report.violations.sort_by_key(|violation| violation.invariant);
    report
}

/// I2, as the database itself sees it: an unfinished message that stands nowhere would never run.
fn places(rows: &Rows, rest: Rest, report: &mut Report) {
    for (message, place) in &rows.misplaced {
        let has_ended = rows.messages.iter().any(|row| row.id == *message && row.has_ended());
        // what is left of an ended one is dropped by the claim that meets it
        if !has_ended && rest == Rest::Drained {
            let what = format!("unfinished and {place}");
            report.add(Invariant::I2, Harm::Lost, Some(*message), what, &[]);
        }
    }
}

/// I10.
fn counters(rows: &Rows, report: &mut Report) {
    if rows.shown.is_empty() {
        if rows.messages.is_empty() {
            report.not_applicable.push((Invariant::I10, "there is nothing to count"));
            return;
        }
        report.add(Invariant::I10, Harm::Other, None, "nothing is shown although there are messages", &[]);
    }
    if i64::try_from(rows.messages.len().max(rows.counted)).is_ok_and(|messages| messages >= cogo_bus_core::COUNT_CAP) {
        report.not_applicable.push((Invariant::I10, "beyond its cap the bus says \"at least\""));
        return;
    }
    for status in ["queued", "claimed", "done", "failed", "cancelled"] {
        let there = rows.messages.iter().filter(|row| row.status == status).count();
        let shown = rows.shown.get(status).copied().unwrap_or(0);
        if usize::try_from(shown) != Ok(there) {
            report.add(Invariant::I10, Harm::Other, None, format!("{shown} {status} shown, {there} in the table"), &[]);
        }
    }
}
