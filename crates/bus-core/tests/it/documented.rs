//! The manual of the bus, held to its word: its SQL runs and answers as it says, and what it names exists.

use std::collections::{BTreeMap, BTreeSet};

use cogo_bus_core::Bus;
use cogo_contracts::NewMessage;
use serde_json::json;
use sqlx::{AssertSqlSafe, Column, PgConnection, Row, postgres::PgRow};
use tokio::time::{Duration, Instant};

use crate::support::{PATIENCE, ROUTE, bus, claim_one, message, misplaced};

const MANUAL: &str = include_str!("../../../../docs/bus.md");
/// Rust in the manual is copied from here, where it is compiled and run.
const THIS_FILE: &str = include_str!("documented.rs");

/// A statement of the manual, as psql would run it.
#[derive(Debug, Default, PartialEq)]
struct Statement {
    line: usize,
    sql: String,
    /// Its columns become variables.
    is_kept: bool,
    answers: Option<String>,
    /// The answer may take a moment, as while other transactions are open.
    is_soon: bool,
}

/// Lines of the fenced blocks of a language, each with its number, block by block.
fn blocks<'d>(document: &'d str, language: &str) -> Vec<Vec<(usize, &'d str)>> {
    let opening = format!("```{language}");
    let mut lines = (1..).zip(document.lines());
    let mut found = Vec::new();
    while lines.any(|(_, line)| line == opening) {
        found.push(lines.by_ref().take_while(|(_, line)| *line != "```").collect());
    }
    found
}

/// A statement ends with its line: in a semicolon, or in `\gset`.
fn statements(block: &[(usize, &str)]) -> Result<Vec<Statement>, String> {
    let mut found: Vec<Statement> = Vec::new();
    let mut open = Statement::default();
    for (number, line) in block {
        if let Some(comment) = line.strip_prefix("-- answers") {
            let last = found.last_mut().filter(|_| open.sql.is_empty());
            let (Some(last), Some((soon, expected))) = (last, comment.split_once(": ")) else {
                return Err(format!("line {number}: an answer to nothing"));
            };
            (last.answers, last.is_soon) = (Some(expected.to_owned()), soon == " soon");
            continue;
        }
        if open.sql.is_empty() {
            open.line = *number;
        }
        open.is_kept = line.ends_with("\\gset");
        open.sql.push_str(line.trim_end_matches("\\gset"));
        open.sql.push('\n');
        if open.is_kept || line.ends_with(';') {
            found.push(std::mem::take(&mut open));
        }
    }
    if open.sql.is_empty() { Ok(found) } else { Err(format!("line {}: it has no end", open.line)) }
}

fn text(row: &PgRow, column: usize) -> Option<String> {
    let raw = row.try_get_raw(column).unwrap();
    // statements without parameters are answered in text
    raw.as_str().ok().map(str::to_owned)
}

fn first_value(rows: &[PgRow]) -> String {
    rows.first().map_or_else(|| "no row".to_owned(), |row| text(row, 0).unwrap_or_else(|| "null".to_owned()))
}

/// Runs one statement; answers its variables, or what is wrong.
async fn run(
    connection: &mut PgConnection,
    statement: &Statement,
    sql: &str,
) -> Result<BTreeMap<String, String>, String> {
    let until = Instant::now() + if statement.is_soon { PATIENCE } else { Duration::ZERO };
    loop {
        let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut *connection).await;
        let (answer, rows) = match ran {
            Ok(rows) => (first_value(&rows), rows),
            Err(sqlx::Error::Database(error)) => (format!("ERROR: {}", error.message()), Vec::new()),
            Err(error) => return Err(error.to_string()),
        };
        let is_right = match &statement.answers {
            Some(expected) => answer == *expected,
            None => !answer.starts_with("ERROR: "),
        };
        if !is_right && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        return match (is_right, statement.is_kept, rows.as_slice()) {
            (false, ..) => Err(format!("answered {answer}")),
            (true, false, _) => Ok(BTreeMap::new()),
            (true, true, [row]) => {
                let column = |(place, column): (usize, &sqlx::postgres::PgColumn)| {
                    Some((column.name().to_owned(), text(row, place)?))
                };
                Ok(row.columns().iter().enumerate().filter_map(column).collect())
            }
            (true, true, rows) => Err(format!("{} rows to keep", rows.len())),
        };
    }
}

/// Runs all of a document on one connection; answers how many statements it has, or the first that is wrong.
async fn check(document: &str, connection: &mut PgConnection) -> Result<usize, String> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    let mut count = 0;
    for block in blocks(document, "sql") {
        for statement in statements(&block)? {
            let sql = variables.iter().fold(statement.sql.clone(), |sql, (name, value)| {
                sql.replace(&format!(":'{name}'"), &format!("'{}'", value.replace('\'', "''")))
            });
            let kept = run(&mut *connection, &statement, &sql)
                .await
                .map_err(|wrong| format!("line {}: {wrong}\n{}", statement.line, statement.sql))?;
            variables.extend(kept);
            count += 1;
        }
    }
    Ok(count)
}

#[tokio::test]
async fn all_sql_of_the_manual_runs_for_the_role_of_a_worker() {
    let (bus, _database) = bus().await;
    let mut connection = bus.pool().acquire().await.unwrap();
    sqlx::query("set role service_role").execute(&mut *connection).await.unwrap();
    let count = check(MANUAL, &mut connection).await.unwrap_or_else(|wrong| panic!("docs/bus.md, {wrong}"));
    assert!(count > 60, "only {count} statements were found");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn manual_that_is_wrong_is_refused() {
    let (bus, _database) = bus().await;
    let mut connection = bus.pool().acquire().await.unwrap();
    let kept = "select 'it''s' as one, null as two \\gset\nselect :'one';\n-- answers: it's\n";
    let in_time = "select 2;\n-- answers soon: 2\nselect bus.cancel(null, 1);\n\
                   -- answers: ERROR: function bus.cancel(unknown, integer) does not exist\n";
    for right in ["select 1;\n-- answers: 1\nselect\n  null;\n-- answers: null\n", kept, in_time] {
        let checked = check(&format!("```sql\n{right}```\n"), &mut connection).await;
        assert_eq!(checked, Ok(2), "{right}");
    }
    for (wrong, told) in [
        ("select 1;\n-- answers: 2\n", "line 2: answered 1"),
        ("select 1;\nselect\n  1 / 0;\n", "line 3: answered ERROR: division by zero"),
        ("select 1 where false;\n-- answers: 1\n", "line 2: answered no row"),
        ("select 1;\n-- answers: ERROR: no\n", "line 2: answered 1"),
        ("select 1 where false \\gset\n", "line 2: 0 rows to keep"),
        ("select null as one \\gset\nselect :'one';\n", "line 3: answered ERROR: syntax error"),
        ("select 1\n", "line 2: it has no end"),
        ("-- answers: 1\n", "line 2: an answer to nothing"),
    ] {
        let refused = check(&format!("```sql\n{wrong}```\n"), &mut connection).await.expect_err(wrong);
        assert!(refused.starts_with(told), "{refused}");
    }
}

#[tokio::test]
async fn everything_that_the_manual_names_in_the_schema_exists() {
    let (bus, _database) = bus().await;
    let known: Vec<String> = sqlx::query_scalar(
        "select p.proname::text from pg_proc p where p.pronamespace = 'bus'::regnamespace
         union select c.relname::text from pg_class c where c.relnamespace = 'bus'::regnamespace",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    let in_rust: Vec<_> = blocks(MANUAL, "rust").into_iter().flatten().map(|(_, line)| line).collect();
    let mut named = BTreeSet::new();
    for line in MANUAL.lines().filter(|line| !in_rust.contains(line)) {
        for after in line.split("bus.").skip(1) {
            named.insert(after.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap());
        }
    }
    let unknown: Vec<_> = named.iter().filter(|name| !known.iter().any(|one| one == *name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(named.len() > 30, "only {} names were found", named.len());
}

#[tokio::test]
async fn table_of_the_fields_of_a_message_has_all_of_them() {
    let (bus, _database) = bus().await;
    let refused = sqlx::query("select bus.enqueue_many('[{\"none\": 1}]')").execute(bus.pool()).await.unwrap_err();
    let told = refused.as_database_error().unwrap().message().to_owned();
    let fields: BTreeSet<_> = told.split_once("a message has ").unwrap().1.split(", ").collect();
    let rows = MANUAL.lines().skip_while(|line| !line.starts_with("| field of")).skip(2);
    let table: BTreeSet<_> = rows
        .take_while(|line| line.starts_with('|'))
        .flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(table, fields);
}

/// What the manual shows of `enqueue_in`.
async fn order(
    bus: &Bus,
    route: cogo_contracts::Route,
    tenant: cogo_contracts::Tenant,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut transaction = bus.pool().begin().await?;
    sqlx::query("insert into orders (number) values (7)").execute(&mut *transaction).await?;
    Bus::enqueue_in(&mut transaction, &NewMessage::new(route, Some(tenant), json!({"order": 7}))).await?;
    transaction.commit().await?;
    Ok(())
}

#[tokio::test]
async fn rust_of_the_manual_is_compiled_and_does_what_it_says() {
    let code: Vec<&str> = THIS_FILE.lines().map(str::trim).collect();
    let shown = blocks(MANUAL, "rust");
    assert!(!shown.is_empty());
    for block in shown {
        let lines: Vec<&str> = block.iter().map(|(_, line)| line.trim()).collect();
        assert!(code.windows(lines.len()).any(|window| window == lines), "not in this file: {lines:?}");
    }
    let (bus, _database) = bus().await;
    sqlx::query("create table orders (number integer primary key)").execute(bus.pool()).await.unwrap();
    let tenant = message(json!({})).tenant.unwrap();
    order(&bus, ROUTE, tenant.clone()).await.unwrap();
    assert_eq!(claim_one(&bus, "w").await.payload, json!({"order": 7}));
    order(&bus, ROUTE, tenant).await.expect_err("the order is there already");
    let sent: i64 =
        sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(sent, 1, "what was rolled back was never sent");
}
