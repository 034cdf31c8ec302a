//! Cuts Markdown by heading.

use super::pieces::{Span, is_blank};

/// One span for each section that holds more than headings; a heading without text joins the section below it.
pub(super) fn spans(lines: &[&str]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut fence: Option<&str> = None;
    let mut start = 0;
    let mut has_text = false;
    for (row, line) in lines.iter().enumerate() {
        let marker = fence_marker(line);
        if fence.is_none()
            && let Some((level, title)) = heading(lines, row)
        {
            if has_text {
                spans.push(section(start, row, &path));
                start = row;
                has_text = false;
            }
            path.retain(|(above, _)| *above < level);
            path.push((level, title));
            continue;
        }
        match (fence, marker) {
            (None, Some(opened)) => fence = Some(opened),
            (Some(opened), Some(closed)) if opened == closed => fence = None,
            _ => {}
        }
        has_text |= !is_blank(line) && !is_underline(line);
    }
    if start < lines.len() {
        spans.push(section(start, lines.len(), &path));
    }
    spans
}

fn section(start: usize, end: usize, path: &[(usize, String)]) -> Span {
    let titles: Vec<&str> = path.iter().map(|(_, title)| title.as_str()).collect();
    let heading = (!titles.is_empty()).then(|| titles.join(" > "));
    Span { heading, ..Span::loose(start, end, "section") }
}

/// `## Title` or a title underlined with `=`.
fn heading(lines: &[&str], row: usize) -> Option<(usize, String)> {
    let line = lines[row].trim_end();
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    if (1..=6).contains(&level) && line[level..].starts_with(' ') {
        return Some((level, line[level..].trim().trim_end_matches('#').trim_end().to_owned()));
    }
    let underlined = lines.get(row + 1).is_some_and(|next| is_underline(next));
    (underlined && !is_blank(line)).then(|| (1, line.trim().to_owned()))
}

fn is_underline(line: &str) -> bool {
    let line = line.trim_end();
    line.len() >= 3 && line.bytes().all(|byte| byte == b'=')
}

fn fence_marker(line: &str) -> Option<&'static str> {
    let line = line.trim_start();
    if line.starts_with("```") {
        Some("```")
    } else if line.starts_with("~~~") {
        Some("~~~")
    } else {
        None
    }
}
