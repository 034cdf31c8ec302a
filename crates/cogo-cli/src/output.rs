//! Where text goes: data to standard output, the rest to standard error, colours only where they are wanted.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;

use crate::{failure::Failure, format};

/// Codes of terminals for the looks, and the one that ends each.
const LOOK_CODES: [&str; 6] = ["0", "1", "2", "31", "32", "33"];
/// Width of lines that go to a file or another program.
const WIDTH_WITHOUT_TERMINAL: usize = 100;

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Bold,
    Dim,
    Good,
    Warning,
    Bad,
}

/// Adds colours, or leaves the text as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    enabled: bool,
}

impl Paint {
    /// Never a colour, whatever the terminal.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { enabled: false };

    fn of(is_terminal: bool) -> Self {
        let non_empty = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self { enabled: wants_colour(non_empty("NO_COLOR"), non_empty("CLICOLOR_FORCE"), is_terminal) }
    }

    pub(crate) fn paint(self, look: Look, text: &str) -> String {
        if !self.enabled {
            return text.to_owned();
        }
        let code = match look {
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Warning => "33",
            Look::Bad => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// The text without anything that would steer the terminal, save the looks that were painted.
    fn only_looks(self, text: &str) -> String {
        let is_look = |part: &str| LOOK_CODES.iter().any(|code| part.starts_with(&format!("[{code}m")));
        let mut parts = text.split('\u{1b}');
        let mut kept = format::harmless(parts.next().unwrap_or_default());
        for part in parts {
            if self.enabled && is_look(part) {
                kept.push('\u{1b}');
            }
            kept.push_str(&format::harmless(part));
        }
        kept
    }
}

fn wants_colour(no_color: Option<OsString>, force: Option<OsString>, is_terminal: bool) -> bool {
    no_color.is_none() && (is_terminal || force.is_some_and(|force| force != "0"))
}

/// The two streams of a command and whether the reader is a program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    pub(crate) paint: Paint,
    stderr_paint: Paint,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, paint: Paint::of(io::stdout().is_terminal()), stderr_paint: Paint::of(io::stderr().is_terminal()) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// One piece of data, ended by a line break and delivered at once.
    pub(crate) fn data(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// An empty screen for what is shown again and again; nothing where no terminal shows it.
    pub(crate) fn clear_screen(&self) -> Result<(), Failure> {
        if !io::stdout().is_terminal() {
            return Ok(());
        }
        // to the upper left, then clear what is below
        Ok(io::stdout().lock().write_all(b"\x1b[H\x1b[J")?)
    }

    /// One JSON value on one line.
    pub(crate) fn value(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::failed("Encode JSON").because(&error))?;
        self.data(&text)
    }

    /// The value for programs or the text for people, which may hold what strangers wrote.
    pub(crate) fn either(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json { self.value(value) } else { self.data(&self.paint.only_looks(&text())) }
    }

    /// Something for the person watching; nobody is hurt when it is lost.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{}", self.stderr_paint.only_looks(text));
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            let problem = serde_json::to_string(&failure.problem_with_id()).unwrap_or_else(|_| failure.text());
            // as [`Output::note`], but untouched
            let _ = writeln!(io::stderr(), "{problem}");
            return;
        }
        // a cause may be the text of a worker
        let text = format::harmless(&failure.text());
        match text.strip_prefix("error:") {
            Some(rest) => self.note(&format!("{}{rest}", self.stderr_paint.paint(Look::Bad, "error:"))),
            None => self.note(&text),
        }
    }

    /// A bar on standard error that only a terminal sees.
    pub(crate) fn progress(&self, message: &str) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(0).with_finish(ProgressFinish::AndClear);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {pos}/{len} {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    /// A spinner on standard error that only a terminal sees.
    pub(crate) fn spinner(&self, message: &str) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
        spinner.set_message(message.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner
    }
}

/// Columns of the terminal, or a fixed number for files and pipes.
pub(crate) fn width() -> usize {
    let named = std::env::var_os("COLUMNS").and_then(|columns| columns.to_str()?.parse().ok());
    let measured = || io::stdout().is_terminal().then(|| Table::new().width()).flatten().map(usize::from);
    named.or_else(measured).unwrap_or(WIDTH_WITHOUT_TERMINAL).clamp(40, 400)
}

/// Columns without lines between them; a head that starts with `>` is of numbers. Each cell is one line, whoever wrote it.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table.set_header(heads.map(|head| Cell::new(head.trim_start_matches('>').to_uppercase())));
    for row in rows {
        table.add_row(row.map(|cell| format::one_line(&cell)));
    }
    for (index, head) in heads.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            let left = usize::from(index != 0);
            column.set_padding((u16::try_from(left).unwrap_or(0), 1));
            if head.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_obey_the_environment_before_the_terminal() {
        let set = || Some(OsString::from("1"));
        assert!(wants_colour(None, None, true));
        assert!(!wants_colour(None, None, false));
        assert!(!wants_colour(set(), set(), true));
        assert!(wants_colour(None, set(), false));
        assert!(!wants_colour(None, Some(OsString::from("0")), false));
        assert_eq!(Paint { enabled: true }.paint(Look::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Paint::PLAIN.paint(Look::Bad, "x"), "x");
    }

    #[test]
    fn text_for_people_steers_no_terminal() {
        let enabled = Paint { enabled: true };
        let hostile = "x\u{1b}]0;title\u{7}\u{1b}[2J\u{1b}[8m\n";
        let painted = format!("{}{hostile}", enabled.paint(Look::Bad, "bad"));
        assert_eq!(enabled.only_looks(&painted), "\u{1b}[31mbad\u{1b}[0mx]0;title[2J[8m\n");
        assert_eq!(Paint::PLAIN.only_looks("a\u{1b}[31mb"), "a[31mb");
        assert_eq!(table(["a", "b"], [["x\ny\u{1b}c".to_owned(), "z".to_owned()]]), "A      B\nx y c  z");
    }

    #[test]
    fn tables_align_numbers_to_the_right() {
        let text = table(["name", ">rows"], [["a".to_owned(), "1".to_owned()], ["bc".to_owned(), "100".to_owned()]]);
        assert_eq!(text, "NAME  ROWS\na        1\nbc     100");
    }
}
