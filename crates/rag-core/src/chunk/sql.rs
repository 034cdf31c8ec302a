//! Cuts SQL by `create` statement, named after what it creates.

use super::pieces::{Span, is_blank};

/// What a `create` statement may make, with the kind that is stored.
const KINDS: [(&str, &str); 10] = [
    ("table", "table"),
    ("function", "function"),
    ("procedure", "function"),
    ("view", "view"),
    ("index", "index"),
    ("trigger", "trigger"),
    ("type", "type"),
    ("schema", "schema"),
    ("sequence", "sequence"),
    ("policy", "policy"),
];

/// Words between `create` and the kind, or between the kind and the name.
const NOISE: [&str; 12] = [
    "or",
    "replace",
    "unique",
    "temporary",
    "temp",
    "unlogged",
    "materialized",
    "constraint",
    "if",
    "not",
    "exists",
    "concurrently",
];

/// A statement's span runs to the next `create`, so that its comments and grants stay with it.
pub(super) fn spans(lines: &[&str]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut open = Span::loose(0, 0, "module");
    for (row, line) in lines.iter().enumerate() {
        let Some((kind, name)) = created(line) else { continue };
        let start = comment_start(lines, row, open.start);
        if start > open.start {
            spans.push(Span { end: start, ..open });
        }
        let symbol = name.rsplit('.').next().map(str::to_owned);
        open = Span { start, end: 0, kind, symbol, qualified_name: Some(name), heading: None };
    }
    if open.start < lines.len() {
        spans.push(Span { end: lines.len(), ..open });
    }
    spans
}

/// Comments directly above a statement belong to it.
fn comment_start(lines: &[&str], statement: usize, floor: usize) -> usize {
    let above = (floor..statement).rev().take_while(|row| lines[*row].starts_with("--") && !is_blank(lines[*row]));
    above.last().unwrap_or(statement)
}

/// Kind and name if the line starts a `create` statement in its first column.
fn created(line: &str) -> Option<(&'static str, String)> {
    let lower = line.to_lowercase();
    let mut words = lower.split_whitespace().filter(|word| !NOISE.contains(word));
    if !line.starts_with(['c', 'C']) || words.next() != Some("create") {
        return None;
    }
    let word = words.next()?;
    let (_, kind) = KINDS.iter().find(|(keyword, _)| *keyword == word)?;
    let name: String = words
        .next()?
        .chars()
        .take_while(|letter| !matches!(letter, '(' | ';' | ','))
        .filter(|letter| *letter != '"')
        .collect();
    (!name.is_empty()).then_some((*kind, name))
}
