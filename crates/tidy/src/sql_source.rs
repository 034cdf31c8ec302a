//! Reads as much SQL as the rules about tables need.

/// What a migration creates and explains.
#[derive(Debug, Default)]
pub struct Migration {
    /// Tables that it creates, with their schema.
    pub tables: Vec<String>,
    /// Columns that it creates.
    pub columns: Vec<Column>,
    /// Columns that it comments on.
    pub commented: Vec<Column>,
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Column {
    /// The table, with its schema.
    pub table: String,
    /// Its name.
    pub name: String,
}

impl Migration {
    /// Reads a migration; bodies of functions and temporary tables are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut migration = Self::default();
        for statement in without_literals(text).split(';') {
            migration.read(&words(statement));
        }
        migration
    }

    fn read(&mut self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["create", "unlogged", "table", rest @ ..] | ["create", "table", rest @ ..] => self.read_table(rest),
            ["alter", "table", rest @ ..] => self.read_alteration(rest),
            ["comment", "on", "column", path, ..] => {
                if let Some((table, name)) = path.rsplit_once('.') {
                    self.commented.push(column(table, name));
                }
            }
            _ => {}
        }
    }

    fn read_table(&mut self, words: &[&str]) {
        let words = words.strip_prefix(&["if", "not", "exists"]).unwrap_or(words);
        let [table, rest @ ..] = words else { return };
        self.tables.push(with_schema(table));
        // A partition has the columns of its parent.
        if rest.first() != Some(&"(") {
            return;
        }
        let mut depth = 0_usize;
        let mut at_start = false;
        for word in rest {
            match *word {
                "(" => {
                    depth += 1;
                    at_start = depth == 1;
                    continue;
                }
                ")" => depth = depth.saturating_sub(1),
                "," if depth == 1 => {
                    at_start = true;
                    continue;
                }
                name if at_start && !starts_a_constraint(name) => self.columns.push(column(table, name)),
                _ => {}
            }
            at_start = false;
            if depth == 0 {
                break;
            }
        }
    }

    fn read_alteration(&mut self, words: &[&str]) {
        let words = words.strip_prefix(&["if", "exists"]).unwrap_or(words);
        let words = words.strip_prefix(&["only"]).unwrap_or(words);
        let [table, rest @ ..] = words else { return };
        for (index, pair) in rest.windows(2).enumerate() {
            if pair == ["add", "column"] {
                let after = &rest[index + 2..];
                let after = after.strip_prefix(&["if", "not", "exists"]).unwrap_or(after);
                self.columns.extend(after.first().map(|name| column(table, name)));
            }
        }
    }
}

/// The tables that a piece of SQL writes to, with their schema; names that are put together at run time are not seen.
#[must_use]
pub fn written_tables(sql: &str) -> Vec<String> {
    let words = words(&without_literals(sql));
    let mut tables = Vec::new();
    for index in 0..words.len() {
        let before = index.checked_sub(1).map_or("", |before| words[before].as_str());
        let following: Vec<&str> = words[index..].iter().take(4).map(String::as_str).collect();
        let table = match following.as_slice() {
            ["insert" | "merge", "into", table, ..] => table,
            ["delete" | "update" | "truncate", "only", table, ..] => table,
            ["delete", "from", "only", table, ..] | ["delete", "from", table, ..] => table,
            ["truncate", "table", table, ..] | ["truncate", table, ..] => table,
            ["copy", table, "from" | "(", ..] => table,
            // Neither `for update skip locked` nor `on conflict do update set`.
            ["update", table, ..] if !matches!(before, "for" | "do" | "key") => table,
            _ => continue,
        };
        if table.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
            tables.push(with_schema(table));
        }
    }
    tables
}

fn column(table: &str, name: &str) -> Column {
    Column { table: with_schema(table), name: name.to_owned() }
}

fn with_schema(table: &str) -> String {
    if table.contains('.') { table.to_owned() } else { format!("public.{table}") }
}

fn starts_a_constraint(word: &str) -> bool {
    matches!(word, "constraint" | "primary" | "unique" | "check" | "foreign" | "exclude" | "like")
}

/// Lowercase words with their dots, and each other sign by itself.
fn words(sql: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in sql.chars().filter(|c| *c != '"') {
        let belongs_to_word = c.is_alphanumeric() || matches!(c, '_' | '.');
        if belongs_to_word && in_word {
            words.last_mut().expect("a word was begun").extend(c.to_lowercase());
        } else if !c.is_whitespace() {
            words.push(c.to_lowercase().collect());
        }
        in_word = belongs_to_word;
    }
    words
}

/// The SQL without comments, quoted text and dollar-quoted bodies.
fn without_literals(sql: &str) -> String {
    let mut kept = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if let Some(tag) = dollar_tag(rest) {
            rest[tag.len()..].find(tag).map_or(rest.len(), |end| end + 2 * tag.len())
        } else {
            kept.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        kept.push(' ');
        rest = &rest[skipped..];
    }
    kept
}

/// `$$` or `$name$` at the start of the text; `$1` is a parameter.
fn dollar_tag(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('$')?;
    let length = inside.find('$')?;
    let name = &inside[..length];
    let is_tag = name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_numeric());
    is_tag.then(|| &text[..length + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_among_constraints_and_defaults() {
        let migration = Migration::parse(
            "create table public.a (
               id uuid primary key default f(1, 2), -- not, a, column
               \"name\" text check (name in ('x, y (', 'z')),
               constraint c check (id is not null), primary key (id, name),
               n numeric(4, 2)
             ) with (fillfactor = 70);
             create table if not exists b (x int);
             create temporary table gone (y int);
             create function f() returns void as $$ create table hidden (z int); $$ language sql;
             alter table b add column late text, add column if not exists later text;
             comment on column a.id is 'it''s; fine';",
        );
        let names: Vec<String> = migration.columns.iter().map(|c| format!("{}.{}", c.table, c.name)).collect();
        let expected = ["public.a.id", "public.a.name", "public.a.n", "public.b.x", "public.b.late", "public.b.later"];
        assert_eq!(names, expected);
        assert_eq!(migration.tables, ["public.a", "public.b"]);
        assert_eq!(migration.commented, [column("a", "id")]);
    }

    #[test]
    fn writes_are_found_and_locks_are_not() {
        let check = |sql: &str, expected: &[&str]| assert_eq!(written_tables(sql), expected, "{sql}");
        check("insert into agent_messages (id) values ($1)", &["public.agent_messages"]);
        check("INSERT\n  INTO bus.cursors select 1", &["bus.cursors"]);
        check(
            "with x as (delete from only kg_edges) update rag_chunks as c set a = 1",
            &["public.kg_edges", "public.rag_chunks"],
        );
        check("select 1 from a for update skip locked", &[]);
        check("select 1 from a for no key update", &[]);
        check("insert into a values (1) on conflict (id) do update set x = 1", &["public.a"]);
        check("select 'delete from a' -- delete from b", &[]);
        check("truncate table a; copy b (x) from stdin", &["public.a", "public.b"]);
        check("insert into {table}", &[]);
    }
}
