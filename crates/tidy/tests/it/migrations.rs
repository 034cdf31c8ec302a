//! Migrations are named by the time and explain every column.

use std::collections::HashSet;

use cogo_tidy::{Column, Migration, migrations_directory, read};

use crate::it::hold;

const DIGITS: usize = 14;

/// File names with what stands in the files, in the order in which they run.
fn migrations() -> Vec<(String, Migration)> {
    let mut migrations = Vec::new();
    for entry in std::fs::read_dir(migrations_directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        migrations.push((name, Migration::parse(&read(&path))));
    }
    migrations.sort_by(|(one, _), (other, _)| one.cmp(other));
    migrations
}

fn is_well_named(name: &str) -> bool {
    let Some((time, rest)) = name.split_once('_') else {
        return false;
    };
    let Some(idea) = rest.strip_suffix(".sql") else {
        return false;
    };
    time.len() == DIGITS
        && time.chars().all(|c| c.is_ascii_digit())
        && !idea.is_empty()
        && idea.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn migrations_are_named_by_time_and_idea() {
    let mut breaches = Vec::new();
    let mut times = HashSet::new();
    for (name, _) in migrations() {
        let is_first_of_its_time = times.insert(name.chars().take(DIGITS).collect::<String>());
        if !is_well_named(&name) || !is_first_of_its_time {
            breaches.push(name);
        }
    }
    hold("a migration is not named <14 digits>_<idea>.sql, or shares its time with another", &breaches);
}

#[test]
fn every_column_is_explained() {
    let migrations = migrations();
    let explained: HashSet<&Column> = migrations.iter().flat_map(|(_, migration)| &migration.commented).collect();
    let mut breaches = Vec::new();
    for (name, migration) in &migrations {
        for column in migration.columns.iter().filter(|column| !explained.contains(column)) {
            breaches.push(format!("{name}: {}.{}", column.table, column.name));
        }
    }
    hold("a column has no `comment on column`", &breaches);
}

#[test]
fn explanations_are_of_columns_that_exist() {
    let migrations = migrations();
    let created: HashSet<&Column> = migrations.iter().flat_map(|(_, migration)| &migration.columns).collect();
    let mut breaches = Vec::new();
    for (name, migration) in &migrations {
        for column in migration.commented.iter().filter(|column| !created.contains(column)) {
            breaches.push(format!("{name}: {}.{}", column.table, column.name));
        }
    }
    hold("a comment is on a column that no table has", &breaches);
}
