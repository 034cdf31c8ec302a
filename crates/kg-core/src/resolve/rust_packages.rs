//! Cargo packages of a tree: targets, library names and dependencies under the names that code uses.

use std::collections::{BTreeMap, HashMap};

use toml::{Table, Value};

use crate::{
    language::Language,
    resolve::{SourceTree, directory, join},
};

/// What a dependency's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dependency {
    /// A package of this tree, by its directory.
    Member(String),
    /// A package from elsewhere, by its real name.
    External(String),
}

/// One `Cargo.toml` with a `[package]`.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) directory: String,
    pub(super) library_name: String,
    pub(super) library_root: Option<String>,
    /// Root files of all targets, library first.
    pub(super) roots: Vec<String>,
    pub(super) dependencies: HashMap<String, Dependency>,
}

/// Reads every package of the tree, in the order of their directories.
pub(super) fn packages(tree: &SourceTree) -> Vec<Package> {
    let tables: BTreeMap<&str, Table> = tree
        .manifests
        .iter()
        .filter(|(path, _)| path.rsplit('/').next() == Some("Cargo.toml"))
        .filter_map(|(path, text)| Some((directory(path), text.parse::<Table>().ok()?)))
        .collect();
    tables.iter().filter_map(|(directory, table)| package(tree, &tables, directory, table)).collect()
}

fn package(
    tree: &SourceTree,
    tables: &BTreeMap<&str, Table>,
    package_directory: &str,
    table: &Table,
) -> Option<Package> {
    let name = table.get("package")?.get("name")?.as_str()?;
    let library = table.get("lib");
    let library_name = text(library, "name").unwrap_or(name).replace('-', "_");
    let library_root = file(tree, package_directory, text(library, "path").unwrap_or("src/lib.rs"));
    let mut roots: Vec<String> = library_root.iter().cloned().collect();
    let build = text(table.get("package"), "build").unwrap_or("build.rs");
    for path in ["src/main.rs", build] {
        roots.extend(file(tree, package_directory, path));
    }
    for kind in ["bin", "test", "bench", "example"] {
        let declared = table.get(kind).and_then(Value::as_array).into_iter().flatten();
        for path in declared.filter_map(|target| text(Some(target), "path")) {
            roots.extend(file(tree, package_directory, path));
        }
    }
    for folder in ["src/bin", "tests", "benches", "examples"] {
        roots.extend(found_targets(tree, package_directory, folder));
    }
    let mut seen = std::collections::HashSet::new();
    roots.retain(|root| seen.insert(root.clone()));
    let dependencies = dependencies(tables, package_directory, table);
    let directory = package_directory.to_owned();
    Some(Package { directory, library_name, library_root, roots, dependencies })
}

/// Cargo finds `folder/x.rs` and `folder/x/main.rs` by itself.
fn found_targets(tree: &SourceTree, package_directory: &str, folder: &str) -> Vec<String> {
    let Some(base) = join(package_directory, folder) else { return Vec::new() };
    let prefix = format!("{base}/");
    tree.files
        .range(prefix.clone()..)
        .take_while(|(path, _)| path.starts_with(&prefix))
        .filter(|(path, file)| {
            let inside = path.get(prefix.len()..).unwrap_or("");
            let depth = inside.matches('/').count();
            file.language == Language::Rust && (depth == 0 || (depth == 1 && inside.ends_with("/main.rs")))
        })
        .map(|(path, _)| path.clone())
        .collect()
}

fn dependencies(tables: &BTreeMap<&str, Table>, package_directory: &str, table: &Table) -> HashMap<String, Dependency> {
    let mut found = HashMap::new();
    let targets = table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let sections = std::iter::once(table).chain(targets.filter_map(Value::as_table));
    for section in sections {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(entries) = section.get(kind).and_then(Value::as_table) else { continue };
            for (key, value) in entries {
                let dependency = dependency(tables, package_directory, key, value);
                found.insert(key.replace('-', "_"), dependency);
            }
        }
    }
    found
}

fn dependency(tables: &BTreeMap<&str, Table>, package_directory: &str, key: &str, value: &Value) -> Dependency {
    let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
    if inherited {
        let workspace =
            std::iter::once(package_directory).chain(crate::resolve::ancestors(package_directory)).find_map(|above| {
                let entries = tables.get(above)?.get("workspace")?.get("dependencies")?;
                Some((above, entries.get(key)?))
            });
        if let Some((above, entry)) = workspace {
            return written(tables, above, key, entry);
        }
    }
    written(tables, package_directory, key, value)
}

fn written(tables: &BTreeMap<&str, Table>, base: &str, key: &str, value: &Value) -> Dependency {
    if let Some(path) = text(Some(value), "path")
        && let Some(member) = join(base, path)
        && tables.contains_key(member.as_str())
    {
        return Dependency::Member(member);
    }
    Dependency::External(text(Some(value), "package").unwrap_or(key).to_owned())
}

fn text<'v>(value: Option<&'v Value>, key: &str) -> Option<&'v str> {
    value?.get(key)?.as_str()
}

fn file(tree: &SourceTree, base: &str, relative: &str) -> Option<String> {
    join(base, relative).filter(|path| tree.files.contains_key(path))
}
