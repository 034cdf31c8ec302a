//! Go: declarations, imports, and the selectors on imported packages (`bus.Claim`).

use std::collections::{HashMap, HashSet};

use tree_sitter::Node;

use crate::{
    extract::{FileWalk, Pending, push_children, reference},
    facts::{DefinitionKind, ReferenceKind},
};

pub(super) fn walk<'tree>(file: &mut FileWalk<'_>, root: Node<'tree>, path: &str) {
    let mut packages: HashMap<String, String> = HashMap::new();
    let mut seen: HashSet<(String, String)> = HashSet::new();
    let mut stack = vec![Pending::root(root)];
    while let Some(pending) = stack.pop() {
        let node = pending.node;
        match node.kind() {
            "package_clause" => {
                let mut cursor = node.walk();
                let name = node.named_children(&mut cursor).next();
                file.facts.package = name.map(|name| file.text(name).to_owned());
            }
            "import_spec" => import(file, node, &mut packages),
            "function_declaration" => function(file, &mut stack, &pending, path),
            "method_declaration" => method(file, &mut stack, &pending),
            "type_spec" | "type_alias" => named_type(file, &mut stack, &pending),
            "const_spec" | "var_spec" => values(file, &mut stack, &pending),
            "selector_expression" | "qualified_type" => {
                selector(file, node, &packages, &mut seen);
                push_children(&mut stack, &pending);
            }
            _ => push_children(&mut stack, &pending),
        }
    }
}

fn import(file: &mut FileWalk<'_>, node: Node<'_>, packages: &mut HashMap<String, String>) {
    let Some(path_node) = node.child_by_field_name("path") else { return };
    let path = file.text(path_node).trim_matches(['"', '`']).to_owned();
    let text = format!("import {path}");
    let mut found = reference(ReferenceKind::Imports, node, path_node, &text, &path);
    let written = file.field_text(node, "name").map(str::to_owned);
    let binding = written.unwrap_or_else(|| default_binding(&path).to_owned());
    if binding != "_" && binding != "." {
        packages.insert(binding.clone(), path);
        found.binding = Some(binding);
    }
    file.facts.references.push(found);
}

/// The package name that an import path most likely has: its last part, without a version.
fn default_binding(path: &str) -> &str {
    let mut parts = path.rsplit('/');
    let last = parts.next().unwrap_or(path);
    let is_version = last
        .strip_prefix('v')
        .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|digit| digit.is_ascii_digit()));
    let name = if is_version { parts.next().unwrap_or(last) } else { last };
    let name = name.split_once(".v").map_or(name, |(before, _)| before);
    name.strip_prefix("go-").unwrap_or(name)
}

fn selector(
    file: &mut FileWalk<'_>,
    node: Node<'_>,
    packages: &HashMap<String, String>,
    seen: &mut HashSet<(String, String)>,
) {
    let (operand, member) = if node.kind() == "qualified_type" {
        (node.child_by_field_name("package"), node.child_by_field_name("name"))
    } else {
        (node.child_by_field_name("operand"), node.child_by_field_name("field"))
    };
    let (Some(operand), Some(member)) = (operand, member) else { return };
    let Some(path) = packages.get(file.text(operand)) else { return };
    let member = file.text(member).to_owned();
    // One row per package member and file: the first use is the one that is cited.
    if !seen.insert((path.clone(), member.clone())) {
        return;
    }
    let mut found = reference(ReferenceKind::References, node, node, file.text(node), path);
    found.name = Some(member);
    file.facts.references.push(found);
}

fn function<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>, path: &str) {
    let name = file.field_text(pending.node, "name").unwrap_or("");
    let is_test = path.ends_with("_test.go")
        && ["Test", "Benchmark", "Fuzz", "Example"].iter().any(|prefix| name.starts_with(prefix));
    let kind = if is_test { DefinitionKind::Test } else { DefinitionKind::Function };
    enter(file, stack, pending, kind, name);
}

fn method<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let name = file.field_text(pending.node, "name").unwrap_or("");
    let receiver = file.field_text(pending.node, "receiver").unwrap_or("");
    let type_name = receiver
        .trim_matches(['(', ')'])
        .split('[')
        .next()
        .and_then(|text| text.split_whitespace().next_back())
        .unwrap_or("")
        .trim_start_matches('*');
    let mut inside = pending.clone();
    inside.container = type_name.into();
    enter(file, stack, &inside, DefinitionKind::Method, name);
}

fn named_type<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let name = file.field_text(pending.node, "name").unwrap_or("");
    let kind = match pending.node.child_by_field_name("type").map_or("", |node| node.kind()) {
        "struct_type" => DefinitionKind::Struct,
        "interface_type" => DefinitionKind::Interface,
        _ => DefinitionKind::Type,
    };
    enter(file, stack, pending, kind, name);
}

fn values<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    if pending.container.is_empty() {
        let mut cursor = pending.node.walk();
        let names: Vec<Node<'_>> = pending.node.children_by_field_name("name", &mut cursor).collect();
        for name in names.into_iter().filter(|name| name.kind() == "identifier") {
            file.define(pending, DefinitionKind::Constant, file.text(name));
        }
    }
    push_children(stack, pending);
}

fn enter<'tree>(
    file: &mut FileWalk<'_>,
    stack: &mut Vec<Pending<'tree>>,
    pending: &Pending<'tree>,
    kind: DefinitionKind,
    name: &str,
) {
    if name.is_empty() {
        return push_children(stack, pending);
    }
    let container = file.define(pending, kind, name);
    let mut inside = pending.clone();
    inside.container = container;
    push_children(stack, &inside);
}
