//! Tells code, comments and string literals of Rust text apart.

/// Rust text whose comments are gone and whose literals stand apart.
#[derive(Debug, Default)]
pub struct RustSource {
    /// The code; literals are empty quotes, lines stay where they are.
    pub code: String,
    /// The string literals, in order.
    pub literals: Vec<Literal>,
}

/// A string literal.
#[derive(Debug, PartialEq, Eq)]
pub struct Literal {
    /// Line on which it begins, from 1.
    pub line: usize,
    /// What stands between the quotes, escapes as written.
    pub text: String,
}

impl RustSource {
    /// Takes the text apart.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut reader = Reader { rest: text, line: 1, source: Self::default() };
        while !reader.rest.is_empty() {
            reader.step();
        }
        reader.source
    }

    /// The lines of code that contain a piece of text, from 1.
    #[must_use]
    pub fn lines_with(&self, wanted: &str) -> Vec<usize> {
        let lines = self.code.lines().enumerate();
        lines.filter(|(_, line)| line.contains(wanted)).map(|(index, _)| index + 1).collect()
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    source: RustSource,
}

impl Reader<'_> {
    fn step(&mut self) {
        let after_word = self.source.code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        if self.rest.starts_with("//") {
            self.drop_bytes(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.drop_bytes(block_comment_length(self.rest));
        } else if let Some((opening, hashes)) = raw_string_opening(self.rest)
            && !after_word
        {
            let closing = format!("\"{}", "#".repeat(hashes));
            let length = self.rest[opening..].find(&closing).unwrap_or(self.rest.len() - opening);
            self.take_literal(opening, length, closing.len());
        } else if self.rest.starts_with('"') {
            let length = escaped_length(&self.rest[1..], '"');
            self.take_literal(1, length, 1);
        } else if let Some(length) = character_length(self.rest) {
            self.source.code.push_str("''");
            self.drop_bytes(length);
        } else {
            let c = self.rest.chars().next().expect("step is called while text is left");
            if c != '\n' {
                self.source.code.push(c);
            }
            self.drop_bytes(c.len_utf8());
        }
    }

    fn take_literal(&mut self, opening: usize, length: usize, closing: usize) {
        let text = self.rest[opening..opening + length].to_owned();
        self.source.literals.push(Literal { line: self.line, text });
        self.source.code.push_str("\"\"");
        self.drop_bytes((opening + length + closing).min(self.rest.len()));
    }

    /// Passes over text; only its line ends go into the code.
    fn drop_bytes(&mut self, length: usize) {
        let line_ends = self.rest[..length].matches('\n').count();
        self.line += line_ends;
        self.source.code.push_str(&"\n".repeat(line_ends));
        self.rest = &self.rest[length..];
    }
}

fn block_comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < text.len() {
        let rest = &text.as_bytes()[position..];
        if rest.starts_with(b"/*") {
            depth += 1;
            position += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += 1;
        }
    }
    text.len()
}

/// Length of the opening of a raw string, and how many `#` it has.
fn raw_string_opening(text: &str) -> Option<(usize, usize)> {
    let after_prefix = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = after_prefix.len() - after_prefix.trim_start_matches('#').len();
    let is_raw_string = after_prefix[hashes..].starts_with('"');
    is_raw_string.then(|| (text.len() - after_prefix.len() + hashes + 1, hashes))
}

/// Length of a character literal with its quotes; `None` for a lifetime and anything else.
fn character_length(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    let first = inside.chars().next()?;
    if first == '\\' {
        return Some((escaped_length(inside, '\'') + 2).min(text.len()));
    }
    inside[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

/// How far it is to the closing quote, escapes passed over.
fn escaped_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (position, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return position,
            _ => {}
        }
    }
    text.len()
}

/// The text without the items under `#[cfg(test)]`, each of which becomes empty lines.
/// Formatted text is taken for granted: an item ends at the closing brace that is indented as its attribute.
#[must_use]
pub fn without_test_items(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut closing: Option<String> = None;
    let mut at_head = false;
    for line in text.lines() {
        if closing.is_none() && line.trim_start() == "#[cfg(test)]" {
            let indent = &line[..line.len() - line.trim_start().len()];
            closing = Some(format!("{indent}}}"));
            at_head = true;
        } else if let Some(end) = &closing {
            let is_attribute = line.trim_start().starts_with("#[");
            let is_whole_item = at_head && !is_attribute && (line.ends_with(';') || line.ends_with('}'));
            at_head &= is_attribute;
            if is_whole_item || line == end {
                closing = None;
            }
        } else {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, code: &str, literals: &[&str]) {
        let source = RustSource::parse(text);
        assert_eq!(source.code, code, "{text}");
        let found: Vec<&str> = source.literals.iter().map(|literal| literal.text.as_str()).collect();
        assert_eq!(found, literals, "{text}");
    }

    #[test]
    fn comments_go_and_literals_stand_apart() {
        check("a(); // b\nc /* d /* e */ f */ g", "a(); \nc  g", &[]);
        check(r#"x("a // \" b", 'c')"#, "x(\"\", '')", &[r#"a // \" b"#]);
        check("y(r#\"a \"b\" \\\"#)", "y(\"\")", &["a \"b\" \\"]);
        check("b\"z\" br\"y\"", "b\"\" \"\"", &["z", "y"]);
        check("for\"x\"", "for\"\"", &["x"]);
        check("fn f<'a>(x: &'a str) { '\\'' }", "fn f<'a>(x: &'a str) { '' }", &[]);
        check("\"never closed", "\"\"", &["never closed"]);
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = RustSource::parse("a\n\"b\nc\"\n/*\n*/ d // e\nf");
        assert_eq!(source.lines_with("f"), [6]);
        assert_eq!(source.literals[0].line, 2);
    }

    #[test]
    fn items_for_tests_are_taken_out() {
        let text = "a\n#[cfg(test)]\nmod tests;\nb\n    #[cfg(test)]\n    fn c() {\n        {\n        }\n    }\n#[cfg(test)]\n#[x]\nmod d {\n}\ne\n";
        let kept: String = without_test_items(text).lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(kept, "abe");
        assert_eq!(without_test_items(text).lines().count(), text.lines().count());
    }
}
