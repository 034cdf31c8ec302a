//! Finds where SQL statements start and end, and what each is about.

/// What a `create` statement may make, with the kind that is stored.
const KINDS: [(&str, &str); 11] = [
    ("table", "table"),
    ("function", "function"),
    ("procedure", "function"),
    ("view", "view"),
    ("index", "index"),
    ("trigger", "trigger"),
    ("type", "type"),
    ("domain", "type"),
    ("schema", "schema"),
    ("sequence", "sequence"),
    ("policy", "policy"),
];

/// Words between `create` and the kind, or between the kind and the name.
const NOISE: [&str; 15] = [
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
    "only",
    "recursive",
    "foreign",
];

/// A statement with the rows of its text, `end` exclusive; comments above it are not part of it.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) subject: Option<Subject>,
}

/// What a statement is about; names are lower-case and without quotes.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    /// It creates this, of this stored kind.
    Created(&'static str, String),
    /// It says in words what this is.
    Commented(String),
    /// It alters this, fills it or grants rights on it.
    Concerned(String),
}

/// The top-level statements in order; a semicolon within quotes or a body ends none.
pub(super) fn statements(lines: &[&str]) -> Vec<Statement> {
    let mut scanner = Scanner { inside: Inside::Statement, text: String::new(), start: None, found: Vec::new() };
    for (row, line) in lines.iter().enumerate() {
        let mut rest = *line;
        while let Some(letter) = rest.chars().next() {
            let Some(length) = scanner.take(row, letter, rest) else { break };
            rest = &rest[length..];
        }
        scanner.text.push(' ');
    }
    scanner.end_statement(lines.len());
    scanner.found
}

/// What the scanner is inside of.
enum Inside {
    Statement,
    BlockComment(usize),
    /// Between these quotes; a backslash escapes in `E'…'` only.
    Quotes(char, bool),
    /// Between two of these tags, such as `$$`.
    Dollars(String),
}

struct Scanner {
    inside: Inside,
    /// The statement so far without comments, strings and bodies.
    text: String,
    start: Option<usize>,
    found: Vec<Statement>,
}

impl Scanner {
    /// Takes what `rest` starts with and answers its bytes; `None` when the rest of the line is a comment.
    fn take(&mut self, row: usize, letter: char, rest: &str) -> Option<usize> {
        let length = letter.len_utf8();
        match &mut self.inside {
            Inside::Statement => return self.take_plain(row, letter, rest),
            Inside::BlockComment(depth) if rest.starts_with("*/") => {
                *depth -= 1;
                if *depth == 0 {
                    self.inside = Inside::Statement;
                }
                return Some(2);
            }
            Inside::BlockComment(depth) if rest.starts_with("/*") => {
                *depth += 1;
                return Some(2);
            }
            Inside::Quotes(_, true) if letter == '\\' => {
                return Some(length + rest[length..].chars().next().map_or(0, char::len_utf8));
            }
            // A doubled quote leaves and enters again.
            Inside::Quotes(quote, _) if letter == *quote => self.inside = Inside::Statement,
            Inside::Quotes('"', _) => self.text.push(letter),
            Inside::Dollars(tag) if rest.starts_with(tag.as_str()) => {
                let end = tag.len();
                self.inside = Inside::Statement;
                return Some(end);
            }
            Inside::BlockComment(_) | Inside::Quotes(..) | Inside::Dollars(_) => {}
        }
        Some(length)
    }

    fn take_plain(&mut self, row: usize, letter: char, rest: &str) -> Option<usize> {
        if rest.starts_with("--") {
            return None;
        }
        if rest.starts_with("/*") {
            self.inside = Inside::BlockComment(1);
            return Some(2);
        }
        if letter == ';' && !is_within_atomic_body(&self.text) {
            self.end_statement(row + 1);
            return Some(1);
        }
        if !letter.is_whitespace() {
            self.start.get_or_insert(row);
        }
        if letter == '\'' || letter == '"' {
            self.inside = Inside::Quotes(letter, letter == '\'' && self.text.ends_with(['e', 'E']));
        } else if let Some(tag) = dollar_tag(rest, &self.text) {
            self.inside = Inside::Dollars(tag.to_owned());
            return Some(tag.len());
        } else {
            self.text.push(letter);
        }
        Some(letter.len_utf8())
    }

    fn end_statement(&mut self, end: usize) {
        if let Some(start) = self.start.take() {
            self.found.push(Statement { start, end, subject: subject(&self.text) });
        }
        self.text.clear();
    }
}

/// `$$` or `$body$` at the start of `rest`; `a$1` is a name and `$1` a parameter.
fn dollar_tag<'line>(rest: &'line str, before: &str) -> Option<&'line str> {
    let within = rest.strip_prefix('$')?;
    let name = within.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'))?;
    let is_tag = within[name..].starts_with('$')
        && !within.starts_with(|first: char| first.is_ascii_digit())
        && !before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
    is_tag.then(|| &rest[..name + 2])
}

/// Whether the semicolon belongs to a body that is written without quotes: `begin atomic …; end`.
fn is_within_atomic_body(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some(body) = lower.find("begin atomic").filter(|_| lower.trim_start().starts_with("create")) else {
        return false;
    };
    lower[body..].split_whitespace().next_back() != Some("end")
}

fn subject(text: &str) -> Option<Subject> {
    let lower = text.to_lowercase();
    let mut words = lower.split_whitespace().filter(|word| !NOISE.contains(word));
    match words.next()? {
        "create" => {
            let word = words.next()?;
            let (_, kind) = KINDS.iter().find(|(keyword, _)| *keyword == word)?;
            name(words.next()?).map(|name| Subject::Created(kind, name))
        }
        "comment" => {
            let kind = words.nth(1)?;
            let commented = name(words.next()?)?;
            match kind {
                "column" => commented.rsplit_once('.').map(|(table, _)| Subject::Commented(table.to_owned())),
                _ => Some(Subject::Commented(commented)),
            }
        }
        "alter" | "insert" => name(words.nth(1)?).map(Subject::Concerned),
        "grant" | "revoke" => {
            let mut after = words.skip_while(|word| *word != "on").skip(1);
            let first = after.next()?;
            let is_kind = matches!(first, "table" | "function" | "procedure" | "sequence" | "schema" | "type");
            name(if is_kind { after.next()? } else { first }).map(Subject::Concerned)
        }
        _ => None,
    }
}

fn name(word: &str) -> Option<String> {
    let name = word.split(['(', ',']).next().unwrap_or(word);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Subject, statements};

    fn check(text: &str, expected: &[(usize, usize)]) {
        let lines: Vec<&str> = text.lines().collect();
        let found: Vec<(usize, usize)> =
            statements(&lines).iter().map(|statement| (statement.start, statement.end)).collect();
        assert_eq!(found, expected, "{text}");
    }

    fn check_subject(text: &str, expected: Option<Subject>) {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(statements(&lines).pop().unwrap().subject, expected, "{text}");
    }

    #[test]
    fn semicolons_inside_end_no_statement() {
        check("create function a() as $$\n  x; create table b ();\n$$ language sql;\nselect 1;", &[(0, 3), (3, 4)]);
        check(
            "do $body$\n  x; $$;$$\n$body$;\n\n-- a; b\nselect ';'';', $1, E'\\';' /* ; /* ; */ ; */;",
            &[(0, 3), (5, 6)],
        );
        check(
            "create function a() returns int begin atomic\n  select 1;\n  select 2;\nend;\nselect 1",
            &[(0, 4), (4, 5)],
        );
        check("insert into a$1 values ('$$');\nselect \"a;b\"", &[(0, 1), (1, 2)]);
    }

    #[test]
    fn statement_knows_what_it_is_about() {
        let created = |kind, name: &str| Some(Subject::Created(kind, name.to_owned()));
        check_subject("Create or Replace Function bus.\"claim\"(n int) as $$;$$", created("function", "bus.claim"));
        check_subject("create unique index if not exists a_b on a (b);", created("index", "a_b"));
        check_subject(
            "comment on function bus.claim(int)\n  is 'x';",
            Some(Subject::Commented("bus.claim".to_owned())),
        );
        check_subject("comment on column a.b.c is 'x';", Some(Subject::Commented("a.b".to_owned())));
        check_subject("grant select on table a.b to c;", Some(Subject::Concerned("a.b".to_owned())));
        check_subject("insert into a.b default values;", Some(Subject::Concerned("a.b".to_owned())));
        check_subject("do $$ begin end $$;", None);
    }
}
