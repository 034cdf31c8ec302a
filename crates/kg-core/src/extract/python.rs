//! Python: functions, classes, module variables, both import forms and literal dynamic imports.

use tree_sitter::Node;

use crate::{
    extract::{FileWalk, Pending, children, first_line, push_children, reference, unquote},
    facts::{DefinitionKind, ReferenceKind},
};

pub(super) fn walk<'tree>(file: &mut FileWalk<'_>, root: Node<'tree>) {
    let mut stack = vec![Pending::root(root)];
    while let Some(pending) = stack.pop() {
        match pending.node.kind() {
            "import_statement" => import_statement(file, pending.node),
            "import_from_statement" => import_from(file, pending.node),
            "future_import_statement" => future_import(file, pending.node),
            "function_definition" | "class_definition" => definition(file, &mut stack, &pending),
            "decorated_definition" => decorated(&mut stack, &pending),
            "assignment" => assignment(file, &mut stack, &pending),
            "call" => call(file, &mut stack, &pending),
            _ => push_children(&mut stack, &pending),
        }
    }
}

fn definition<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let Some(name) = file.field_text(pending.node, "name") else {
        return push_children(stack, pending);
    };
    let is_class = pending.node.kind() == "class_definition";
    let kind = match (is_class, pending.in_type) {
        (true, _) => DefinitionKind::Class,
        (false, _) if name.starts_with("test_") => DefinitionKind::Test,
        (false, true) => DefinitionKind::Method,
        (false, false) => DefinitionKind::Function,
    };
    if pending.container.is_empty() && name == "__getattr__" {
        file.facts.opaque = true;
    }
    let container = file.define(pending, kind, name);
    let mut inside = pending.clone();
    inside.lead = None;
    inside.container = container;
    inside.in_type = is_class;
    push_children(stack, &inside);
}

fn decorated<'tree>(stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let first = stack.len();
    push_children(stack, pending);
    for child in stack.iter_mut().skip(first) {
        if matches!(child.node.kind(), "function_definition" | "class_definition") {
            child.lead = Some(("".into(), first_line(pending.node)));
        }
    }
}

fn assignment<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    if pending.container.is_empty()
        && let Some(left) = pending.node.child_by_field_name("left")
    {
        let mut names = vec![left];
        while let Some(node) = names.pop() {
            match node.kind() {
                "identifier" => {
                    file.define(pending, DefinitionKind::Constant, file.text(node));
                }
                "pattern_list" | "tuple_pattern" | "list_pattern" => names.extend(children(node)),
                _ => {}
            }
        }
    }
    push_children(stack, pending);
}

fn import_statement(file: &mut FileWalk<'_>, node: Node<'_>) {
    for name_node in field_children(node, "name") {
        let (module, alias) = name_and_alias(file, name_node);
        let text = format!("import {module}");
        let mut found = reference(ReferenceKind::Imports, node, name_node, &text, &module);
        // `import a.b` binds `a`; only an alias binds the module itself.
        found.binding = alias;
        file.facts.references.push(found);
    }
}

fn import_from(file: &mut FileWalk<'_>, node: Node<'_>) {
    let module: String =
        file.field_text(node, "module_name").unwrap_or("").chars().filter(|letter| !letter.is_whitespace()).collect();
    for name_node in field_children(node, "name") {
        let (name, alias) = name_and_alias(file, name_node);
        let text = format!("from {module} import {name}");
        let mut found = reference(ReferenceKind::Imports, node, name_node, &text, &module);
        found.binding = Some(alias.unwrap_or_else(|| name.clone()));
        found.name = Some(name);
        file.facts.references.push(found);
    }
    if let Some(star) = children(node).into_iter().find(|child| child.kind() == "wildcard_import") {
        let text = format!("from {module} import *");
        let mut found = reference(ReferenceKind::Imports, node, star, &text, &module);
        found.name = Some("*".to_owned());
        file.facts.references.push(found);
    }
}

fn future_import(file: &mut FileWalk<'_>, node: Node<'_>) {
    for name_node in field_children(node, "name") {
        let text = format!("from __future__ import {}", file.text(name_node));
        let found = reference(ReferenceKind::Imports, node, name_node, &text, "__future__");
        file.facts.references.push(found);
    }
}

/// `importlib.import_module("a.b")` and `__import__("a")` with a literal are imports like any other.
fn call<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    push_children(stack, pending);
    let function = file.field_text(pending.node, "function").unwrap_or("");
    if !matches!(function, "importlib.import_module" | "import_module" | "__import__") {
        return;
    }
    let Some(arguments) = pending.node.child_by_field_name("arguments") else { return };
    let mut cursor = arguments.walk();
    let Some(first) = arguments.named_children(&mut cursor).next() else { return };
    let literal = (first.kind() == "string").then(|| unquote(file.text(first))).flatten();
    let text = file.text(pending.node);
    let mut found = reference(ReferenceKind::Imports, pending.node, pending.node, text, literal.unwrap_or(""));
    found.computed = literal.is_none();
    file.facts.references.push(found);
}

fn name_and_alias(file: &FileWalk<'_>, node: Node<'_>) -> (String, Option<String>) {
    if node.kind() != "aliased_import" {
        return (tight(file.text(node)), None);
    }
    let name = tight(file.field_text(node, "name").unwrap_or(""));
    (name, file.field_text(node, "alias").map(str::to_owned))
}

fn tight(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_whitespace()).collect()
}

fn field_children<'tree>(node: Node<'tree>, field: &str) -> Vec<Node<'tree>> {
    let mut cursor = node.walk();
    node.children_by_field_name(field, &mut cursor).collect()
}
