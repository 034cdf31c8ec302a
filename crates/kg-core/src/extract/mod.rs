//! Extraction: one parse per file, one walk over its tree, definitions and references out.

mod go;
mod javascript;
mod python;
mod rust;

use std::rc::Rc;

use tree_sitter::{Node, Parser};

use crate::{
    facts::{Definition, DefinitionKind, FileFacts, Reference, ReferenceKind, one_line},
    language::Language,
};

/// Why a file could not be parsed at all; broken code still parses, in part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The grammar was built for another version of the parser.
    #[error("Grammar of {language} does not fit the parser")]
    Grammar {
        /// The language whose grammar was refused.
        language: &'static str,
        /// What the parser said.
        #[source]
        source: tree_sitter::LanguageError,
    },
    /// The parser gave no tree.
    #[error("Parser of {0} gave up")]
    Parse(&'static str),
}

/// Deeper than any code that people write. Qualified names grow with the depth, so a file made to be deep would grow
/// with its square: 150 kB of nested modules took gigabytes.
const DEEPEST: usize = 200;
/// The same for languages that nest by indentation, in columns.
const DEEPEST_INDENTATION: usize = 800;

/// Reads definitions and references out of one file. A file that nests deeper than 200 levels counts as one that could
/// not be parsed: it stands in the graph without content.
///
/// # Errors
/// When the grammar cannot be loaded or the parser gives up; malformed code is not an error.
pub fn extract(path: &str, language: Language, source: &str) -> Result<FileFacts, Error> {
    let mut file = FileWalk::new(source, language);
    if nests_too_deep(source) {
        file.facts.parse_errors = true;
        return Ok(file.finish());
    }
    let mut parser = Parser::new();
    parser
        .set_language(&grammar(path, language))
        .map_err(|source| Error::Grammar { language: language.as_str(), source })?;
    let tree = parser.parse(source, None).ok_or(Error::Parse(language.as_str()))?;
    let root = tree.root_node();
    file.facts.parse_errors = root.has_error();
    match language {
        Language::Rust => rust::walk(&mut file, root, &mut parser),
        Language::Python => python::walk(&mut file, root),
        Language::TypeScript | Language::JavaScript => javascript::walk(&mut file, root, path),
        Language::Go => go::walk(&mut file, root, path),
    }
    Ok(file.finish())
}

fn nests_too_deep(source: &str) -> bool {
    let mut depth = 0_usize;
    for byte in source.bytes() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return true;
        }
    }
    source.lines().any(|line| line.len() - line.trim_start().len() > DEEPEST_INDENTATION && !line.trim().is_empty())
}

fn grammar(path: &str, language: Language) -> tree_sitter::Language {
    match language {
        Language::Rust => tree_sitter_rust::LANGUAGE.into(),
        Language::Python => tree_sitter_python::LANGUAGE.into(),
        Language::TypeScript if path.ends_with(".tsx") => tree_sitter_typescript::LANGUAGE_TSX.into(),
        Language::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into(),
        Language::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
        Language::Go => tree_sitter_go::LANGUAGE.into(),
    }
}

/// A node that waits on the walk's own stack (deep code must not overflow the thread's).
#[derive(Clone)]
struct Pending<'tree> {
    node: Node<'tree>,
    /// Qualified name of what encloses the node.
    container: Rc<str>,
    /// Whether the container is a type, so that functions in it are methods.
    in_type: bool,
    /// Rust: inline module path.
    scope: Rc<str>,
    /// Attributes or decorators in front: their text and first line.
    lead: Option<(Rc<str>, u32)>,
}

impl<'tree> Pending<'tree> {
    fn root(node: Node<'tree>) -> Self {
        Self { node, container: Rc::from(""), in_type: false, scope: Rc::from(""), lead: None }
    }

    fn at(&self, node: Node<'tree>) -> Self {
        Self { node, lead: None, ..self.clone() }
    }

    fn start_line(&self) -> u32 {
        self.lead.as_ref().map_or_else(|| first_line(self.node), |lead| lead.1)
    }
}

/// The state of one walk: source text in, facts out.
struct FileWalk<'s> {
    source: &'s str,
    language: Language,
    facts: FileFacts,
}

impl<'s> FileWalk<'s> {
    fn new(source: &'s str, language: Language) -> Self {
        let lines = u32::try_from(source.lines().count()).unwrap_or(u32::MAX);
        Self { source, language, facts: FileFacts { lines, ..FileFacts::default() } }
    }

    fn finish(mut self) -> FileFacts {
        self.facts.references.sort_by_key(|reference| reference.line);
        self.facts.definitions.sort_by_key(|definition| (definition.start_line, definition.end_line));
        self.facts
    }

    fn text(&self, node: Node<'_>) -> &'s str {
        self.source.get(node.byte_range()).unwrap_or("")
    }

    fn field_text(&self, node: Node<'_>, field: &str) -> Option<&'s str> {
        node.child_by_field_name(field).map(|child| self.text(child))
    }

    fn qualify(&self, container: &str, name: &str) -> String {
        if container.is_empty() {
            return name.to_owned();
        }
        format!("{container}{}{name}", self.language.separator())
    }

    /// Records a definition and gives its qualified name, the container of what it holds.
    fn define(&mut self, pending: &Pending<'_>, kind: DefinitionKind, name: &str) -> Rc<str> {
        let name = one_line(name);
        let qualified_name = self.qualify(&pending.container, &name);
        let container = Rc::from(qualified_name.as_str());
        self.facts.definitions.push(Definition {
            kind,
            name,
            qualified_name,
            start_line: pending.start_line(),
            end_line: last_line(pending.node),
        });
        container
    }
}

/// A reference as the language modules begin it: the statement's lines and a name's line.
fn reference(kind: ReferenceKind, statement: Node<'_>, name_node: Node<'_>, text: &str, module: &str) -> Reference {
    Reference {
        kind,
        line: first_line(name_node),
        start_line: first_line(statement),
        end_line: last_line(statement),
        text: one_line(text),
        module: module.chars().filter(|character| *character != '\0').collect(),
        name: None,
        binding: None,
        scope: String::new(),
        path_attribute: None,
        computed: false,
    }
}

/// Pushes the children so that they are popped in source order.
fn push_children<'tree>(stack: &mut Vec<Pending<'tree>>, parent: &Pending<'tree>) {
    let mut cursor = parent.node.walk();
    let first = stack.len();
    for child in parent.node.named_children(&mut cursor) {
        stack.push(parent.at(child));
    }
    if let Some(children) = stack.get_mut(first..) {
        children.reverse();
    }
}

fn children<'tree>(node: Node<'tree>) -> Vec<Node<'tree>> {
    let mut cursor = node.walk();
    node.children(&mut cursor).collect()
}

fn child_of_kind<'tree>(node: Node<'tree>, kind: &str) -> Option<Node<'tree>> {
    children(node).into_iter().find(|child| child.kind() == kind)
}

fn first_line(node: Node<'_>) -> u32 {
    u32::try_from(node.start_position().row + 1).unwrap_or(u32::MAX)
}

fn last_line(node: Node<'_>) -> u32 {
    let end = node.end_position();
    // A node that ends at column 0 ends with the line break of the line before.
    let row = if end.column == 0 && end.row > node.start_position().row { end.row } else { end.row + 1 };
    u32::try_from(row).unwrap_or(u32::MAX)
}

/// The text between the quotes of a string literal without escapes or substitutions.
fn unquote(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let plain = !inner.contains('\\') && (quote != '`' || !inner.contains("${"));
    plain.then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_made_to_be_deep_counts_as_not_parsed() {
        for (path, language, source) in [
            ("a.rs", Language::Rust, format!("{}fn f() {{}}\n{}", "mod a {\n".repeat(15_000), "}\n".repeat(15_000))),
            ("a.py", Language::Python, format!("if x:\n{}y = 1\n", " ".repeat(900))),
        ] {
            let facts = extract(path, language, &source).unwrap();
            assert!(facts.parse_errors && facts.definitions.is_empty(), "{path}");
        }
        let deep_enough = format!("{}fn f() {{}}\n{}", "mod a {\n".repeat(20), "}\n".repeat(20));
        assert!(!extract("a.rs", Language::Rust, &deep_enough).unwrap().parse_errors);
    }
}
