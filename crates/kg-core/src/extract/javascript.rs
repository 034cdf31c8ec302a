//! JavaScript and TypeScript: declarations, ES and CommonJS imports and exports, dynamic imports, test cases.

use tree_sitter::Node;

use crate::{
    extract::{FileWalk, Pending, child_of_kind, children, push_children, reference, unquote},
    facts::{DefinitionKind, Export, Reference, ReferenceKind},
    language::is_test_path,
};

pub(super) fn walk<'tree>(file: &mut FileWalk<'_>, root: Node<'tree>, path: &str) {
    let is_test_file = is_test_path(path);
    let mut stack = vec![Pending::root(root)];
    while let Some(pending) = stack.pop() {
        match pending.node.kind() {
            "import_statement" => import_statement(file, pending.node),
            "export_statement" => export_statement(file, &mut stack, &pending),
            "variable_declarator" => variable(file, &mut stack, &pending),
            "call_expression" => call(file, &mut stack, &pending, is_test_file),
            "assignment_expression" => {
                common_js_export(file, pending.node);
                push_children(&mut stack, &pending);
            }
            _ => declaration(file, &mut stack, &pending),
        }
    }
}

fn declaration<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let kind = match pending.node.kind() {
        "function_declaration" | "generator_function_declaration" | "function_signature" => DefinitionKind::Function,
        "class_declaration" | "abstract_class_declaration" => DefinitionKind::Class,
        "interface_declaration" => DefinitionKind::Interface,
        "type_alias_declaration" => DefinitionKind::Type,
        "enum_declaration" => DefinitionKind::Enum,
        "internal_module" | "module" => DefinitionKind::Module,
        "method_definition" | "abstract_method_signature" => DefinitionKind::Method,
        _ => return push_children(stack, pending),
    };
    let Some(name) = file.field_text(pending.node, "name") else {
        return push_children(stack, pending);
    };
    let container = file.define(pending, kind, name.trim_matches(['"', '\'']));
    let mut inside = pending.clone();
    inside.lead = None;
    inside.container = container;
    push_children(stack, &inside);
}

fn import_statement(file: &mut FileWalk<'_>, node: Node<'_>) {
    if let Some(clause) = child_of_kind(node, "import_require_clause") {
        let binding = child_of_kind(clause, "identifier").map(|name| file.text(name).to_owned());
        if let Some(source) = clause.child_by_field_name("source").and_then(|n| unquote(file.text(n))) {
            push(file, ReferenceKind::Imports, node, node, source, Some("*"), binding);
        }
        return;
    }
    let Some(source) = source_of(file, node) else { return };
    let Some(clause) = child_of_kind(node, "import_clause") else {
        push(file, ReferenceKind::Imports, node, node, source, None, None);
        return;
    };
    for part in children(clause) {
        match part.kind() {
            "identifier" => {
                let binding = Some(file.text(part).to_owned());
                push(file, ReferenceKind::Imports, node, part, source, Some("default"), binding);
            }
            "namespace_import" => {
                let binding = child_of_kind(part, "identifier").map(|name| file.text(name).to_owned());
                push(file, ReferenceKind::Imports, node, part, source, Some("*"), binding);
            }
            "named_imports" => {
                let specifiers: Vec<_> = specifiers(part, "import_specifier");
                if specifiers.is_empty() {
                    push(file, ReferenceKind::Imports, node, part, source, None, None);
                }
                for specifier in specifiers {
                    let (name, local) = names(file, specifier);
                    let binding = Some(local);
                    push(file, ReferenceKind::Imports, node, specifier, source, Some(&name), binding);
                }
            }
            _ => {}
        }
    }
}

fn export_statement<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let node = pending.node;
    let clause = child_of_kind(node, "export_clause");
    if let Some(source) = source_of(file, node) {
        return reexports(file, node, clause, source);
    }
    if let Some(clause) = clause {
        for specifier in specifiers(clause, "export_specifier") {
            let (local, name) = names(file, specifier);
            file.facts.exports.push(Export { name, local });
        }
        return;
    }
    let is_default = children(node).iter().any(|child| matches!(child.kind(), "default" | "="));
    if is_default {
        default_export(file, pending);
    }
    push_children(stack, pending);
}

/// `export default …` and `export = …`: a name, a declaration, or something without a name of its own.
fn default_export(file: &mut FileWalk<'_>, pending: &Pending<'_>) {
    let node = pending.node;
    let value = node
        .child_by_field_name("declaration")
        .or_else(|| node.child_by_field_name("value"))
        .or_else(|| child_of_kind(node, "identifier"));
    let Some(value) = value else { return };
    let local = if value.kind() == "identifier" { Some(file.text(value)) } else { file.field_text(value, "name") };
    match local {
        Some(local) => {
            let local = local.to_owned();
            file.facts.exports.push(Export { name: "default".to_owned(), local });
        }
        None => {
            let kind = if value.kind().contains("class") {
                DefinitionKind::Class
            } else if value.kind().contains("function") {
                DefinitionKind::Function
            } else {
                DefinitionKind::Constant
            };
            file.define(pending, kind, "default");
        }
    }
}

fn reexports(file: &mut FileWalk<'_>, node: Node<'_>, clause: Option<Node<'_>>, source: &str) {
    let kind = ReferenceKind::Reexports;
    if let Some(namespace) = child_of_kind(node, "namespace_export") {
        let name = children(namespace).last().map(|name| file.text(*name).to_owned());
        return push(file, kind, node, namespace, source, Some("*"), name);
    }
    let Some(clause) = clause else {
        return push(file, kind, node, node, source, Some("*"), None);
    };
    let specifiers = specifiers(clause, "export_specifier");
    if specifiers.is_empty() {
        push(file, kind, node, node, source, None, None);
    }
    for specifier in specifiers {
        let (name, outside) = names(file, specifier);
        push(file, kind, node, specifier, source, Some(&name), Some(outside));
    }
}

fn variable<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let node = pending.node;
    let name = node.child_by_field_name("name");
    let value = node.child_by_field_name("value");
    if let (Some(name), Some(value)) = (name, value)
        && let Some(source) = required_source(file, value)
    {
        return require_bindings(file, node, name, source);
    }
    if let Some(name) = name.filter(|name| name.kind() == "identifier" && pending.container.is_empty()) {
        let is_function = value.is_some_and(|value| {
            matches!(value.kind(), "arrow_function" | "function_expression" | "generator_function")
        });
        let kind = if is_function { DefinitionKind::Function } else { DefinitionKind::Constant };
        let container = file.define(pending, kind, file.text(name));
        let mut inside = pending.clone();
        inside.container = container;
        return push_children(stack, &inside);
    }
    push_children(stack, pending);
}

/// `require("x")` or `await import("x")` on the right of a declaration, with or without a member after it.
fn required_source<'s>(file: &FileWalk<'s>, value: Node<'_>) -> Option<&'s str> {
    let mut node = value;
    if node.kind() == "await_expression" {
        node = node.named_child(0)?;
    }
    if node.kind() != "call_expression" {
        return None;
    }
    match file.field_text(node, "function")? {
        "require" | "import" => literal_argument(file, node),
        _ => None,
    }
}

fn require_bindings(file: &mut FileWalk<'_>, node: Node<'_>, name: Node<'_>, source: &str) {
    let kind = ReferenceKind::Imports;
    if name.kind() != "object_pattern" {
        let binding = (name.kind() == "identifier").then(|| file.text(name).to_owned());
        return push(file, kind, node, name, source, Some("*"), binding);
    }
    let mut any = false;
    for part in children(name) {
        let (member, local) = match part.kind() {
            "shorthand_property_identifier_pattern" => (file.text(part), Some(file.text(part))),
            "object_assignment_pattern" => {
                (file.field_text(part, "left").unwrap_or("*"), file.field_text(part, "left"))
            }
            "pair_pattern" => (file.field_text(part, "key").unwrap_or("*"), file.field_text(part, "value")),
            "rest_pattern" => ("*", None),
            _ => continue,
        };
        any = true;
        push(file, kind, node, part, source, Some(member), local.map(str::to_owned));
    }
    if !any {
        push(file, kind, node, name, source, None, None);
    }
}

fn call<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>, is_test_file: bool) {
    push_children(stack, pending);
    let node = pending.node;
    let function = file.field_text(node, "function").unwrap_or("");
    match function {
        "require" | "import" | "require.resolve" => match literal_argument(file, node) {
            Some(source) => push(file, ReferenceKind::Imports, node, node, source, Some("*"), None),
            None if has_argument(node) => {
                let text = file.text(node).to_owned();
                let mut found = reference(ReferenceKind::Imports, node, node, &text, "");
                found.computed = true;
                file.facts.references.push(found);
            }
            None => {}
        },
        "test" | "it" if is_test_file => {
            if let Some(title) = literal_argument(file, node) {
                file.define(pending, DefinitionKind::Test, title);
            }
        }
        _ => {}
    }
}

/// `module.exports = name`, `module.exports = { a, b: c }`, `exports.a = …`.
fn common_js_export(file: &mut FileWalk<'_>, node: Node<'_>) {
    let left = file.field_text(node, "left").unwrap_or("");
    let Some(right) = node.child_by_field_name("right") else { return };
    let local = (right.kind() == "identifier").then(|| file.text(right).to_owned());
    if left == "module.exports" {
        if let Some(local) = local {
            file.facts.exports.push(Export { name: "default".to_owned(), local });
        } else if right.kind() == "object" {
            for part in children(right) {
                let (name, local) = match part.kind() {
                    "shorthand_property_identifier" => (file.text(part), file.text(part)),
                    "pair" => {
                        (file.field_text(part, "key").unwrap_or(""), file.field_text(part, "value").unwrap_or(""))
                    }
                    _ => continue,
                };
                let export = Export { name: name.to_owned(), local: crate::facts::one_line(local) };
                file.facts.exports.push(export);
            }
        }
        return;
    }
    let name = left.strip_prefix("module.exports.").or_else(|| left.strip_prefix("exports."));
    if let Some(name) = name.filter(|name| !name.contains('.')) {
        let local = local.unwrap_or_else(|| name.to_owned());
        file.facts.exports.push(Export { name: name.to_owned(), local });
    }
}

fn push(
    file: &mut FileWalk<'_>,
    kind: ReferenceKind,
    statement: Node<'_>,
    name_node: Node<'_>,
    source: &str,
    name: Option<&str>,
    binding: Option<String>,
) {
    let verb = if kind == ReferenceKind::Reexports { "export" } else { "import" };
    let text = match name {
        Some(name) => format!("{verb} {name} from '{source}'"),
        None => format!("{verb} '{source}'"),
    };
    let found = reference(kind, statement, name_node, &text, source);
    file.facts.references.push(Reference { name: name.map(str::to_owned), binding, ..found });
}

fn source_of<'s>(file: &FileWalk<'s>, node: Node<'_>) -> Option<&'s str> {
    unquote(file.field_text(node, "source")?)
}

fn literal_argument<'s>(file: &FileWalk<'s>, call: Node<'_>) -> Option<&'s str> {
    let arguments = call.child_by_field_name("arguments")?;
    let first = arguments.named_child(0)?;
    matches!(first.kind(), "string" | "template_string").then(|| unquote(file.text(first))).flatten()
}

fn has_argument(call: Node<'_>) -> bool {
    call.child_by_field_name("arguments").is_some_and(|arguments| arguments.named_child_count() > 0)
}

fn specifiers<'tree>(clause: Node<'tree>, kind: &str) -> Vec<Node<'tree>> {
    children(clause).into_iter().filter(|child| child.kind() == kind).collect()
}

/// The name on the left of `as` and the one on the right, equal where there is no `as`.
fn names(file: &FileWalk<'_>, specifier: Node<'_>) -> (String, String) {
    let clean = |text: &str| text.trim_matches(['"', '\'']).to_owned();
    let name = clean(file.field_text(specifier, "name").unwrap_or(""));
    let alias = file.field_text(specifier, "alias").map(clean);
    let alias = alias.unwrap_or_else(|| name.clone());
    (name, alias)
}
