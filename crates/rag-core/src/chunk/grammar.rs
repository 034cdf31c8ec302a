//! What counts as a definition in each language that has a grammar here.

use tree_sitter::Node;

use crate::language::Language;

/// A trait up to this many lines is read as a whole; a longer one is cut by method.
const WHOLE_TRAIT_LINES: usize = 40;

/// How a node of the syntax tree takes part in chunking.
pub(super) enum Role<'tree> {
    /// A definition that is one chunk.
    Definition {
        /// Stored kind.
        kind: &'static str,
        /// Its simple name, or `Type.method` where the receiver is written in the definition.
        name: String,
    },
    /// A definition whose members are chunks of their own.
    Container {
        /// Stored kind.
        kind: &'static str,
        /// Its simple name.
        name: String,
        /// The node whose children are the members.
        body: Node<'tree>,
        /// Whether functions inside are methods.
        has_methods: bool,
    },
    /// Not a definition, but definitions may stand inside.
    Transparent,
    /// Loose code.
    Loose,
}

/// A language with a grammar.
pub(super) struct Grammar {
    language: Language,
}

impl Grammar {
    /// The grammar of `language`, if there is one here.
    pub(super) fn of(language: Language) -> Option<Self> {
        use Language::{Go, JavaScript, Python, Rust, Tsx, TypeScript};
        matches!(language, Rust | Python | JavaScript | TypeScript | Tsx | Go).then_some(Self { language })
    }

    /// What stands between the parts of a qualified name.
    pub(super) fn separator(&self) -> &'static str {
        if self.language == Language::Rust { "::" } else { "." }
    }

    /// The tree-sitter language.
    pub(super) fn tree_sitter(&self) -> tree_sitter::Language {
        match self.language {
            Language::Python => tree_sitter_python::LANGUAGE.into(),
            Language::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
            Language::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into(),
            Language::Tsx => tree_sitter_typescript::LANGUAGE_TSX.into(),
            Language::Go => tree_sitter_go::LANGUAGE.into(),
            _ => tree_sitter_rust::LANGUAGE.into(),
        }
    }

    /// Judges one node.
    pub(super) fn role<'tree>(&self, node: Node<'tree>, source: &str) -> Role<'tree> {
        if node.is_error() {
            return Role::Transparent;
        }
        match self.language {
            Language::Python => python(node, source),
            Language::Go => go(node, source),
            Language::Rust => rust(node, source),
            _ => script(node, source),
        }
    }
}

/// Whether a node belongs to the definition right below it.
pub(super) fn is_leading(node: Node<'_>, source: &str) -> bool {
    let about_the_file = text_of(node, source).starts_with("//!") || text_of(node, source).starts_with("/*!");
    matches!(node.kind(), "line_comment" | "block_comment" | "comment" | "attribute_item" | "decorator")
        && !about_the_file
}

fn rust<'tree>(node: Node<'tree>, source: &str) -> Role<'tree> {
    let kind = match node.kind() {
        "function_item" | "function_signature_item" => "function",
        "struct_item" | "union_item" => "struct",
        "enum_item" => "enum",
        "type_item" => "type",
        "const_item" | "static_item" => "const",
        "macro_definition" => "macro",
        "trait_item" => {
            let lines = node.end_position().row - node.start_position().row + 1;
            if lines > WHOLE_TRAIT_LINES {
                return container(node, "trait", field_text(node, "name", source), true);
            }
            "trait"
        }
        "impl_item" => {
            let name = field_text(node, "type", source).map(|text| bare_type_name(&text, "::"));
            return container(node, "impl", name, true);
        }
        "mod_item" => return container(node, "module", field_text(node, "name", source), false),
        _ => return Role::Loose,
    };
    definition(kind, field_text(node, "name", source))
}

fn python<'tree>(node: Node<'tree>, source: &str) -> Role<'tree> {
    match node.kind() {
        "function_definition" => definition("function", field_text(node, "name", source)),
        "class_definition" => container(node, "class", field_text(node, "name", source), true),
        "decorated_definition" => inner(node, "definition", |wrapped| python(wrapped, source)),
        "if_statement" | "elif_clause" | "else_clause" | "try_statement" | "except_clause" | "finally_clause"
        | "with_statement" | "block" => Role::Transparent,
        _ => Role::Loose,
    }
}

fn go<'tree>(node: Node<'tree>, source: &str) -> Role<'tree> {
    match node.kind() {
        "function_declaration" => definition("function", field_text(node, "name", source)),
        "method_declaration" => {
            let receiver = node
                .child_by_field_name("receiver")
                .and_then(|list| list.named_child(0))
                .and_then(|parameter| field_text(parameter, "type", source));
            let name = field_text(node, "name", source);
            let qualified = match (receiver, name) {
                (Some(receiver), Some(name)) => Some(format!("{}.{name}", bare_type_name(&receiver, "."))),
                (_, name) => name,
            };
            definition("method", qualified)
        }
        "type_declaration" => {
            let Some(spec) = node.named_child(0) else { return Role::Loose };
            let kind = match spec.child_by_field_name("type").map(|declared| declared.kind()) {
                Some("struct_type") => "struct",
                Some("interface_type") => "interface",
                _ => "type",
            };
            definition(kind, field_text(spec, "name", source))
        }
        "const_declaration" | "var_declaration" => {
            let first = node.named_child(0);
            let spec = first.filter(|spec| spec.kind() != "var_spec_list").or_else(|| first?.named_child(0));
            definition("const", spec.and_then(|spec| field_text(spec, "name", source)))
        }
        _ => Role::Loose,
    }
}

/// JavaScript and TypeScript.
fn script<'tree>(node: Node<'tree>, source: &str) -> Role<'tree> {
    match node.kind() {
        "function_declaration" | "generator_function_declaration" | "function_signature" => {
            definition("function", field_text(node, "name", source))
        }
        "class_declaration" | "abstract_class_declaration" => {
            container(node, "class", field_text(node, "name", source), true)
        }
        "interface_declaration" => definition("interface", field_text(node, "name", source)),
        "type_alias_declaration" => definition("type", field_text(node, "name", source)),
        "enum_declaration" => definition("enum", field_text(node, "name", source)),
        "internal_module" | "module" => container(node, "module", field_text(node, "name", source), false),
        "method_definition" | "method_signature" | "abstract_method_signature" => {
            definition("method", field_text(node, "name", source))
        }
        "public_field_definition" | "field_definition" if holds_function(node) => {
            let name = field_text(node, "name", source).or_else(|| field_text(node, "property", source));
            definition("method", name)
        }
        "export_statement" => inner(node, "declaration", |wrapped| script(wrapped, source)),
        "ambient_declaration" => node.named_child(0).map_or(Role::Loose, |wrapped| script(wrapped, source)),
        "expression_statement" => Role::Transparent,
        "lexical_declaration" | "variable_declaration" => variable(node, source),
        _ => Role::Loose,
    }
}

/// Functions and classes held by a variable, and long or exported values; `const x = require(..)` is loose code.
fn variable<'tree>(node: Node<'tree>, source: &str) -> Role<'tree> {
    let Some(declarator) = node.named_child(0) else { return Role::Loose };
    let plain_name = declarator.child_by_field_name("name").filter(|name| name.kind() == "identifier");
    let exported = node.parent().is_some_and(|parent| parent.kind() == "export_statement");
    let long = node.end_position().row - node.start_position().row >= 2;
    if plain_name.is_none() || !(exported || long || holds_function(declarator)) {
        return Role::Loose;
    }
    let kind = if holds_function(declarator) { "function" } else { "const" };
    definition(kind, field_text(declarator, "name", source))
}

fn holds_function(node: Node<'_>) -> bool {
    node.child_by_field_name("value").is_some_and(|value| {
        matches!(value.kind(), "arrow_function" | "function_expression" | "function" | "generator_function")
    })
}

fn inner<'tree>(node: Node<'tree>, field: &str, judge: impl FnOnce(Node<'tree>) -> Role<'tree>) -> Role<'tree> {
    node.child_by_field_name(field).map_or(Role::Loose, judge)
}

fn definition<'tree>(kind: &'static str, name: Option<String>) -> Role<'tree> {
    name.map_or(Role::Loose, |name| Role::Definition { kind, name })
}

fn container<'tree>(node: Node<'tree>, kind: &'static str, name: Option<String>, has_methods: bool) -> Role<'tree> {
    match (name, node.child_by_field_name("body")) {
        (Some(name), Some(body)) => Role::Container { kind, name, body, has_methods },
        _ => Role::Loose,
    }
}

fn field_text(node: Node<'_>, field: &str, source: &str) -> Option<String> {
    let text = text_of(node.child_by_field_name(field)?, source);
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn text_of<'source>(node: Node<'_>, source: &'source str) -> &'source str {
    source.get(node.byte_range()).unwrap_or("")
}

/// `Foo` for `&'a mut path::Foo<T>` or `*Foo[T]`.
fn bare_type_name(text: &str, separator: &str) -> String {
    let without_arguments = text.split(['<', '[']).next().unwrap_or(text);
    let last = without_arguments.rsplit(separator).next().unwrap_or(without_arguments);
    last.rsplit([' ', '*', '&']).next().unwrap_or(last).to_owned()
}
