//! Which lines of a passage to quote.

use crate::{
    search::{Passage, Terms},
    sentences::{starts_comment_on, told},
};

/// Most lines in a quote of a body.
const BODY_LINES: usize = 8;
/// Fewer lines of code seldom tell anything.
const LEAST_LINES: usize = 4;
/// Most lines in a quote of docs and signature.
const HEAD_LINES: usize = 16;
/// Each further line costs this much coverage, so that quotes stay short.
const LINE_COST: f64 = 0.01;
/// How much less the docs and signature may cover and still be quoted: they say what the definition is.
const HEAD_ADVANTAGE: f64 = 0.25;
/// What SQL says of a definition in words is quoted rather than its body if it covers this share of what the body does.
const COMMENT_SHARE: f64 = 0.5;

/// Rows of the passage, counted from 0, `end` exclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Share of the question that the lines and the passage's name cover.
    pub(super) coverage: f64,
}

/// The lines that cover most of the question; docs and signature of a definition come first when in doubt.
pub(super) fn best_window(passage: &Passage, lines: &[&str], masks: &[u64], named: u64, terms: &Terms) -> Window {
    let body = best_body(lines, masks, named, terms, passage.symbol.is_none());
    if !passage.is_start || passage.symbol.is_none() {
        return body;
    }
    if let Some(comment) = comment_of(lines, masks, named, terms) {
        let tells_enough = comment.coverage >= COMMENT_SHARE * body.coverage || passage.kind == "comment";
        // It stands for the definition, so among the quotes it counts for what the definition covers.
        let coverage = comment.coverage.max(body.coverage);
        return if tells_enough { Window { coverage, ..comment } } else { body };
    }
    let end = match head_end(lines) {
        // A signature without docs says little, so the start of the body is shown with it.
        bare if bare <= 2 => lines.len().min(BODY_LINES),
        documented => documented,
    };
    let mask = masks[..end].iter().fold(named, |all, mask| all | mask);
    let head = Window { start: 0, end, coverage: terms.coverage(mask) };
    let asked_by_name = passage.components.symbol > 0.0;
    if asked_by_name || head.coverage + HEAD_ADVANTAGE >= body.coverage {
        return head;
    }
    // Lines near the docs and signature are shown with them, which say what the lines are about.
    if body.end <= HEAD_LINES { Window { start: 0, ..body } } else { body }
}

/// The statement below an SQL definition that says in words what it is.
fn comment_of(lines: &[&str], masks: &[u64], named: u64, terms: &Terms) -> Option<Window> {
    let told = told(lines);
    let end_of = |start: usize| {
        (start + 1..lines.len()).find(|row| !told[*row] || starts_comment_on(lines[*row])).unwrap_or(lines.len())
    };
    let windows = (0..lines.len()).filter(|row| starts_comment_on(lines[*row])).map(|start| {
        let end = end_of(start).min(start + HEAD_LINES);
        let mask = masks[start..end].iter().fold(named, |all, mask| all | mask);
        Window { start, end, coverage: terms.coverage(mask) }
    });
    // Of equal ones the first, which is about the object as a whole.
    windows.reduce(|best, other| if other.coverage > best.coverage { other } else { best })
}

fn best_body(lines: &[&str], masks: &[u64], named: u64, terms: &Terms, is_prose: bool) -> Window {
    let mut best = Window { start: 0, end: lines.len().min(BODY_LINES), coverage: 0.0 };
    let mut best_value = f64::MIN;
    for start in (0..lines.len()).filter(|row| says_something(lines[*row])) {
        let mut mask = named;
        for end in start + 1..=lines.len().min(start + BODY_LINES) {
            mask |= masks[end - 1];
            let coverage = terms.coverage(mask);
            let value = coverage - LINE_COST * (end - start) as f64;
            if value > best_value && says_something(lines[end - 1]) {
                best_value = value;
                best = Window { start, end, coverage };
            }
        }
    }
    if is_prose { whole_paragraph(lines, best) } else { with_context(lines, best) }
}

/// A line or two of code alone are hard to read, so their neighbours are shown as well.
fn with_context(lines: &[&str], window: Window) -> Window {
    let (mut start, mut end) = (window.start, window.end);
    while end - start < LEAST_LINES && (start > 0 || end < lines.len()) {
        end = lines.len().min(end + 1);
        start = start.saturating_sub(usize::from(end - start < LEAST_LINES));
    }
    Window { start, end, ..window }
}

/// A sentence cut in the middle is no answer, so prose is quoted by paragraph as far as it fits.
fn whole_paragraph(lines: &[&str], window: Window) -> Window {
    let (mut start, mut end) = (window.start, window.end);
    // A heading alone names the answer without giving it.
    while end < lines.len() && end - start < BODY_LINES && lines[start..end].iter().all(|line| is_heading(line)) {
        end += 1;
    }
    while end < lines.len() && says_something(lines[end]) && end - start < BODY_LINES {
        end += 1;
    }
    while start > 0 && says_something(lines[start - 1]) && end - start < BODY_LINES {
        start -= 1;
    }
    Window { start, end, ..window }
}

/// First row after docs, attributes and signature; a docstring below the signature belongs to it.
fn head_end(lines: &[&str]) -> usize {
    let limit = lines.len().min(HEAD_LINES);
    let code = (0..limit).find(|row| !is_comment_or_attribute(lines[*row])).unwrap_or(limit.saturating_sub(1));
    let ends_signature = |row: &usize| {
        let line = lines[*row].trim_end();
        line.ends_with(['{', ':', ';', '}']) || line.contains("{ ")
    };
    let signature = (code..limit).find(ends_signature).unwrap_or(code);
    let docstring = lines.get(signature + 1).map(|line| line.trim_start()).and_then(|line| {
        let quote = ["\"\"\"", "'''"].into_iter().find(|quote| line.starts_with(quote))?;
        let closed_at_once = line.len() > 3 && line[3..].contains(quote);
        let closing = (signature + 2..limit).find(|row| lines[*row].contains(quote));
        Some(if closed_at_once { signature + 1 } else { closing.unwrap_or(limit - 1) })
    });
    (docstring.unwrap_or(signature) + 1).min(lines.len())
}

fn is_comment_or_attribute(line: &str) -> bool {
    let line = line.trim_start();
    ["//", "#", "/*", "*", "--", "@", "]", ")]"].iter().any(|mark| line.starts_with(mark))
}

fn is_heading(line: &str) -> bool {
    line.starts_with('#') || !says_something(line)
}

fn says_something(line: &str) -> bool {
    line.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::head_end;

    fn check(text: &str, expected: usize) {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(head_end(&lines), expected, "{text}");
    }

    #[test]
    fn head_is_docs_and_signature() {
        check("/// Doc.\n#[must_use]\nfn a(\n    b: u8,\n) -> u8 {\n    1\n}", 5);
        check("def a(x):\n    \"\"\"Doc.\n\n    More.\n    \"\"\"\n    return 1", 5);
        check("def a(x):\n    \"\"\"Doc.\"\"\"\n    return 1", 2);
        check("class A:\n    x = 1", 1);
        check("const A: u8 = 1;", 1);
        check("// only a comment", 1);
    }
}
