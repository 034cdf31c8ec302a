//! Turns spans of lines into chunks of bounded size.

use super::Chunk;

/// Most lines in one chunk.
pub const MAX_CHUNK_LINES: usize = 60;
/// A chunk stops growing at this size in bytes; one longer line still stays whole.
pub const MAX_CHUNK_BYTES: usize = 2_400;
/// Loose text is cut at a blank line once a piece has grown this far.
const LOOSE_TARGET_LINES: usize = 40;

/// Lines that belong together, before they are cut to size. Rows count from 0, `end` is exclusive.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: &'static str,
    pub(super) symbol: Option<String>,
    pub(super) qualified_name: Option<String>,
    pub(super) heading: Option<String>,
}

impl Span {
    /// Lines that belong to no definition.
    pub(super) fn loose(start: usize, end: usize, kind: &'static str) -> Self {
        Self { start, end, kind, symbol: None, qualified_name: None, heading: None }
    }

    fn is_loose(&self) -> bool {
        self.symbol.is_none() && self.heading.is_none()
    }
}

/// Cuts ordered, disjoint spans into chunks; blank lines at the ends of a piece are dropped.
pub(super) fn cut(lines: &[&str], spans: Vec<Span>) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for span in join_closing_lines(lines, spans) {
        let mut part = 0;
        let mut start = span.start;
        while let Some(first) = (start..span.end).find(|row| !is_blank(lines[*row])) {
            let end = piece_end(lines, first, &span);
            let last = (first..end).rev().find(|row| !is_blank(lines[*row])).unwrap_or(first);
            chunks.push(Chunk {
                kind: span.kind,
                symbol: span.symbol.clone(),
                qualified_name: span.qualified_name.clone(),
                heading: span.heading.clone(),
                start_line: line_number(first),
                end_line: line_number(last),
                part,
                text: lines[first..=last].join("\n"),
            });
            part += 1;
            start = end;
        }
    }
    chunks
}

/// Closing braces alone say nothing, so they go to the span before them.
fn join_closing_lines(lines: &[&str], spans: Vec<Span>) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        let says_nothing = lines[span.start..span.end].iter().all(|line| !line.chars().any(char::is_alphanumeric));
        match joined.last_mut() {
            Some(previous) if says_nothing => previous.end = span.end,
            _ => joined.push(span),
        }
    }
    joined
}

/// First row after the piece that starts at `first`.
fn piece_end(lines: &[&str], first: usize, span: &Span) -> usize {
    let mut bytes = 0;
    let mut row = first;
    while row < span.end && row - first < MAX_CHUNK_LINES {
        bytes += lines[row].len() + 1;
        let grown = row - first >= LOOSE_TARGET_LINES || bytes >= MAX_CHUNK_BYTES * 2 / 3;
        if span.is_loose() && grown && is_blank(lines[row]) {
            return row + 1;
        }
        if bytes > MAX_CHUNK_BYTES && row > first {
            break;
        }
        row += 1;
    }
    if row >= span.end {
        return span.end;
    }
    // A blank line in the last part of the piece is a better seam than the middle of a paragraph.
    let earliest = first + (row - first) * 3 / 5;
    (earliest..row).rev().find(|seam| is_blank(lines[*seam])).map_or(row, |seam| seam + 1)
}

pub(super) fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

fn line_number(row: usize) -> u32 {
    u32::try_from(row + 1).unwrap_or(u32::MAX)
}
