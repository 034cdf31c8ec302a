//! Cuts SQL by statement; what creates something is named after it and keeps its comments and grants.

mod statement;

use super::pieces::{MAX_CHUNK_BYTES, MAX_CHUNK_LINES, Span, is_blank};
use statement::{Statement, Subject, statements};

/// A loose statement this long is read by itself, such as a `do` block; shorter ones are read with their neighbours.
const OWN_SPAN_LINES: usize = 8;

/// One span for each object that is created, with what is said of it right afterwards; loose statements between them.
pub(super) fn spans(lines: &[&str]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut open: Option<Open> = None;
    let mut covered = header_end(lines);
    if covered > 0 {
        spans.push(Span::loose(0, covered, "module"));
    }
    for statement in statements(lines) {
        // Two statements on one line cannot be told apart by lines.
        let shares_a_line = statement.start < covered;
        match &mut open {
            Some(object) if shares_a_line || object.takes(&statement) => object.add(&statement, covered),
            _ => {
                spans.extend(open.take().into_iter().flat_map(|object| object.into_spans(lines)));
                open = Some(Open::with(statement, covered));
            }
        }
        covered = open.as_ref().map_or(covered, |object| object.end);
    }
    spans.extend(open.into_iter().flat_map(|object| object.into_spans(lines)));
    let end = spans.last().map_or(0, |span| span.end);
    if end < lines.len() {
        spans.push(Span::loose(end, lines.len(), "module"));
    }
    spans
}

/// Row after the comment that a file starts with, which is about the file if a blank line follows.
fn header_end(lines: &[&str]) -> usize {
    let rows = lines.iter().take_while(|line| line.starts_with("--")).count();
    if lines.get(rows).is_some_and(|line| is_blank(line)) { rows } else { 0 }
}

/// The span that is being gathered.
struct Open {
    /// Row after the span before, so that comments above the statement belong to it.
    start: usize,
    end: usize,
    /// What is created; loose statements have none.
    created: Option<(&'static str, String)>,
    /// Lines of the only or last loose statement.
    lines: usize,
    /// Where the comments on the object start, if only they follow.
    comments: Option<usize>,
}

impl Open {
    fn with(statement: Statement, start: usize) -> Self {
        let lines = statement.end - statement.start;
        let created = match statement.subject {
            Some(Subject::Created(kind, name)) => Some((kind, name)),
            _ => None,
        };
        Self { start: start.min(statement.start), end: statement.end, created, lines, comments: None }
    }

    fn takes(&self, statement: &Statement) -> bool {
        match (&self.created, &statement.subject) {
            (_, Some(Subject::Created(..))) => false,
            (Some((_, name)), Some(Subject::Commented(other) | Subject::Concerned(other))) => name == other,
            (Some(_), None) => false,
            (None, _) => self.lines.max(statement.end - statement.start) < OWN_SPAN_LINES,
        }
    }

    fn add(&mut self, statement: &Statement, covered: usize) {
        let is_comment = matches!(statement.subject, Some(Subject::Commented(_)));
        if is_comment && statement.start >= covered {
            self.comments.get_or_insert(covered);
        }
        self.lines = statement.end - statement.start;
        self.end = self.end.max(statement.end);
    }

    /// An object too long for one chunk is told apart from its comments, so that these can be found and cited alone.
    fn into_spans(self, lines: &[&str]) -> Vec<Span> {
        let Some((kind, name)) = self.created else { return vec![Span::loose(self.start, self.end, "module")] };
        let symbol = name.rsplit('.').next().map(str::to_owned);
        let whole = Span { symbol, qualified_name: Some(name), ..Span::loose(self.start, self.end, kind) };
        let bytes: usize = lines[self.start..self.end].iter().map(|line| line.len() + 1).sum();
        let is_long = self.end - self.start > MAX_CHUNK_LINES || bytes > MAX_CHUNK_BYTES;
        match self.comments.filter(|_| is_long) {
            Some(row) => {
                let comments = Span { start: row, kind: "comment", ..whole.clone() };
                vec![Span { end: row, ..whole }, comments]
            }
            None => vec![whole],
        }
    }
}
