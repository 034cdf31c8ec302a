//! Rust: items, `use` trees, `mod` declarations, qualified paths, and items inside item macros.

use std::rc::Rc;

use tree_sitter::{Node, Parser, Range};

use crate::{
    extract::{FileWalk, Pending, child_of_kind, children, first_line, push_children, reference},
    facts::{DefinitionKind, ReferenceKind, one_line},
};

/// How deep macros in macros are parsed again.
const MACRO_DEPTH: u8 = 4;

const PRIMITIVES: [&str; 17] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32", "f64", "bool",
    "char", "str",
];

pub(super) fn walk<'tree>(file: &mut FileWalk<'_>, root: Node<'tree>, parser: &mut Parser) {
    walk_from(file, Pending::root(root), parser, 0);
}

fn walk_from<'tree>(file: &mut FileWalk<'_>, start: Pending<'tree>, parser: &mut Parser, macro_depth: u8) {
    let mut stack = vec![start];
    while let Some(pending) = stack.pop() {
        match pending.node.kind() {
            "source_file" | "declaration_list" => push_items(file, &mut stack, &pending),
            "mod_item" => module(file, &mut stack, &pending),
            "use_declaration" => use_declaration(file, &pending),
            "extern_crate_declaration" => extern_crate(file, &pending),
            "macro_invocation" => {
                macro_invocation(file, &mut stack, &pending, parser, macro_depth);
            }
            "scoped_identifier" | "scoped_type_identifier" => path(file, &mut stack, &pending),
            "visibility_modifier" | "attribute_item" | "inner_attribute_item" | "token_tree" => {}
            _ => item(file, &mut stack, &pending),
        }
    }
}

/// Pushes items with the attributes that stand in front of each.
fn push_items<'tree>(file: &FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, parent: &Pending<'tree>) {
    let mut lead: Option<(String, u32)> = None;
    let mut items = Vec::new();
    for child in children(parent.node) {
        match child.kind() {
            "attribute_item" => {
                let (text, _) = lead.get_or_insert_with(|| (String::new(), first_line(child)));
                text.push_str(file.text(child));
            }
            "line_comment" | "block_comment" => {}
            _ => {
                let mut pending = parent.at(child);
                pending.lead = lead.take().map(|(text, line)| (Rc::from(text), line));
                items.push(pending);
            }
        }
    }
    stack.extend(items.into_iter().rev());
}

fn item<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let kind = match pending.node.kind() {
        "function_item" | "function_signature_item" if is_test(pending) => DefinitionKind::Test,
        "function_item" | "function_signature_item" if pending.in_type => DefinitionKind::Method,
        "function_item" | "function_signature_item" => DefinitionKind::Function,
        "struct_item" | "union_item" => DefinitionKind::Struct,
        "enum_item" => DefinitionKind::Enum,
        "trait_item" => DefinitionKind::Trait,
        "type_item" | "associated_type" => DefinitionKind::Type,
        "const_item" | "static_item" => DefinitionKind::Constant,
        "macro_definition" => DefinitionKind::Macro,
        "impl_item" => return implementation(file, stack, pending),
        _ => return push_children(stack, pending),
    };
    let Some(name) = file.field_text(pending.node, "name") else {
        return push_children(stack, pending);
    };
    let container = file.define(pending, kind, raw(name));
    let mut inside = pending.clone();
    inside.lead = None;
    if !matches!(kind, DefinitionKind::Macro) {
        inside.in_type = kind == DefinitionKind::Trait;
        inside.container = container;
        push_children(stack, &inside);
    }
}

fn is_test(pending: &Pending<'_>) -> bool {
    let Some((attributes, _)) = &pending.lead else { return false };
    attributes.split("#[").any(|attribute| {
        let path = attribute.split(['(', ']']).next().unwrap_or("");
        matches!(path.trim().rsplit("::").next(), Some("test" | "rstest" | "test_case"))
    })
}

fn implementation<'tree>(file: &FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let type_name = pending.node.child_by_field_name("type").map_or("", |node| {
        let bare = node.child_by_field_name("type").unwrap_or(node);
        file.text(bare).rsplit("::").next().unwrap_or("")
    });
    let mut inside = pending.clone();
    inside.lead = None;
    inside.in_type = true;
    inside.container = Rc::from(file.qualify(&pending.scope, &one_line(type_name)));
    push_children(stack, &inside);
}

fn module<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let node = pending.node;
    let Some(name_node) = node.child_by_field_name("name") else { return };
    let name = raw(file.text(name_node));
    if let Some(body) = node.child_by_field_name("body") {
        file.define(pending, DefinitionKind::Module, name);
        let scope: Rc<str> = Rc::from(file.qualify(&pending.scope, name));
        let mut inside = pending.at(body);
        inside.container = Rc::clone(&scope);
        inside.scope = scope;
        inside.in_type = false;
        stack.push(inside);
        return;
    }
    let mut found = reference(ReferenceKind::Declares, node, name_node, file.text(node), name);
    found.binding = Some(name.to_owned());
    found.scope = pending.scope.to_string();
    found.path_attribute = pending.lead.as_ref().and_then(|(text, _)| path_attribute(text));
    file.facts.references.push(found);
}

/// The value of `#[path = "…"]`, also inside `cfg_attr`.
fn path_attribute(attributes: &str) -> Option<String> {
    let (_, after) = attributes.split_once("path")?;
    let value = after.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
    value.split('"').next().map(str::to_owned)
}

fn extern_crate(file: &mut FileWalk<'_>, pending: &Pending<'_>) {
    let node = pending.node;
    let Some(name_node) = node.child_by_field_name("name") else { return };
    let name = raw(file.text(name_node));
    let module = if name == "self" { "crate".to_owned() } else { format!("::{name}") };
    let mut found = reference(ReferenceKind::Imports, node, name_node, file.text(node), &module);
    found.binding = Some(file.field_text(node, "alias").unwrap_or(name).to_owned());
    found.scope = pending.scope.to_string();
    file.facts.references.push(found);
}

fn use_declaration(file: &mut FileWalk<'_>, pending: &Pending<'_>) {
    let node = pending.node;
    let kind = if child_of_kind(node, "visibility_modifier").is_some() {
        ReferenceKind::Reexports
    } else {
        ReferenceKind::Imports
    };
    let Some(argument) = node.child_by_field_name("argument") else { return };
    let mut trees = vec![(argument, String::new())];
    while let Some((tree, prefix)) = trees.pop() {
        match tree.kind() {
            "use_list" => {
                trees.extend(named(tree).into_iter().rev().map(|child| (child, prefix.clone())));
            }
            "scoped_use_list" => {
                let path = file.field_text(tree, "path").unwrap_or("");
                // `use ::{a, b}` has no path but still starts outside.
                let joined = if path.is_empty() { prefix } else { join(&prefix, path) };
                if let Some(list) = tree.child_by_field_name("list") {
                    trees.push((list, joined));
                }
            }
            "line_comment" | "block_comment" => {}
            _ => use_leaf(file, pending, kind, tree, &prefix),
        }
    }
}

fn use_leaf(file: &mut FileWalk<'_>, pending: &Pending<'_>, kind: ReferenceKind, tree: Node<'_>, prefix: &str) {
    let (path_node, alias, glob) = match tree.kind() {
        "use_as_clause" => (tree.child_by_field_name("path"), file.field_text(tree, "alias"), false),
        "use_wildcard" => (named(tree).first().copied(), None, true),
        _ => (Some(tree), None, false),
    };
    let written = path_node.map_or("", |node| file.text(node));
    let mut module = if written.is_empty() { prefix.to_owned() } else { join(prefix, written) };
    if let Some(parent) = module.strip_suffix("::self") {
        module = parent.to_owned();
    }
    let text = if glob { format!("use {module}::*") } else { format!("use {module}") };
    let mut found = reference(kind, pending.node, tree, &text, &module);
    found.scope = pending.scope.to_string();
    if glob {
        found.name = Some("*".to_owned());
    } else {
        let own_name = module.rsplit("::").next().unwrap_or("");
        found.binding = Some(alias.map_or(own_name, raw).to_owned());
    }
    file.facts.references.push(found);
}

fn path<'tree>(file: &mut FileWalk<'_>, stack: &mut Vec<Pending<'tree>>, pending: &Pending<'tree>) {
    let Some(module) = plain_path(file, pending.node) else {
        return push_children(stack, pending);
    };
    let first = module.split("::").next().unwrap_or("");
    let starts_lower = first.chars().next().is_some_and(|letter| letter.is_lowercase() || letter == '_');
    if !first.is_empty() && (!starts_lower || PRIMITIVES.contains(&first)) {
        return;
    }
    let mut found = reference(ReferenceKind::References, pending.node, pending.node, &module, &module);
    found.scope = pending.scope.to_string();
    let repeated = file.facts.references.iter().rev().take_while(|known| known.line >= found.line);
    if !repeated.into_iter().any(|known| known.module == found.module && known.kind == found.kind) {
        file.facts.references.push(found);
    }
}

/// The path without generics; `None` if a part is not a plain name (`<T as X>::y`, `$crate::y`).
fn plain_path(file: &FileWalk<'_>, node: Node<'_>) -> Option<String> {
    let text = file.text(node);
    let plain = text.chars().all(|letter| {
        letter.is_alphanumeric() || letter == '_' || letter == ':' || letter == '#' || letter.is_whitespace()
    });
    plain.then(|| join("", text))
}

fn macro_invocation<'tree>(
    file: &mut FileWalk<'_>,
    stack: &mut Vec<Pending<'tree>>,
    pending: &Pending<'tree>,
    parser: &mut Parser,
    macro_depth: u8,
) {
    if let Some(name) = pending.node.child_by_field_name("macro") {
        stack.push(pending.at(name));
    }
    let parent_kind = pending.node.parent().map_or("", |parent| parent.kind());
    let is_item = matches!(parent_kind, "source_file" | "declaration_list" | "")
        || (parent_kind == "expression_statement"
            && pending
                .node
                .parent()
                .and_then(|parent| parent.parent())
                .is_some_and(|above| above.kind() == "source_file"));
    if !is_item || pending.in_type {
        return;
    }
    let body = child_of_kind(pending.node, "token_tree")
        .filter(|body| macro_depth < MACRO_DEPTH && file.text(*body).starts_with('{'));
    let understood = body.is_some_and(|body| items_inside(file, pending, body, parser, macro_depth));
    file.facts.opaque |= !understood;
}

/// Macros such as `cfg_feature! { mod x; use y; }` hold plain items: the body is parsed as a file of its own.
/// Gives false if the body is no plain Rust, so that the macro may define anything.
fn items_inside(
    file: &mut FileWalk<'_>,
    pending: &Pending<'_>,
    body: Node<'_>,
    parser: &mut Parser,
    macro_depth: u8,
) -> bool {
    let whole = body.range();
    if whole.end_byte < whole.start_byte + 2 || whole.end_point.column == 0 {
        return false;
    }
    let mut range: Range = whole;
    range.start_byte += 1;
    range.start_point.column += 1;
    range.end_byte -= 1;
    range.end_point.column -= 1;
    if parser.set_included_ranges(&[range]).is_err() {
        return false;
    }
    let parsed = parser.parse(file.source, None);
    // An empty list means the whole file again; it cannot be refused.
    let _ = parser.set_included_ranges(&[]);
    let Some(tree) = parsed else { return false };
    if tree.root_node().has_error() {
        return false;
    }
    let mut start = Pending::root(tree.root_node());
    start.scope = Rc::clone(&pending.scope);
    start.container = Rc::clone(&pending.container);
    walk_from(file, start, parser, macro_depth + 1);
    true
}

fn named<'tree>(node: Node<'tree>) -> Vec<Node<'tree>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).filter(|child| !matches!(child.kind(), "line_comment" | "block_comment")).collect()
}

fn join(prefix: &str, path: &str) -> String {
    let tight: String = path.chars().filter(|letter| !letter.is_whitespace()).collect();
    let leading = tight.starts_with("::");
    let path = tight.split("::").filter(|part| !part.is_empty()).map(raw).collect::<Vec<_>>().join("::");
    match (prefix.is_empty(), leading) {
        (true, true) => format!("::{path}"),
        (true, false) => path,
        (false, _) => format!("{prefix}::{path}"),
    }
}

fn raw(name: &str) -> &str {
    name.strip_prefix("r#").unwrap_or(name)
}
