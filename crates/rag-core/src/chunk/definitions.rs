//! Cuts code by definition with tree-sitter.

use tree_sitter::{Node, Parser};

use super::{
    grammar::{Grammar, Role, is_leading},
    pieces::Span,
};

/// Containers nest this deep at most; broken input can nest errors without end.
const MAX_DEPTH: usize = 24;

/// One span for each definition, the loose lines between them gathered.
pub(super) fn spans(grammar: &Grammar, source: &str, lines: &[&str]) -> Vec<Span> {
    let mut parser = Parser::new();
    let ready = parser.set_language(&grammar.tree_sitter()).is_ok();
    let tree = if ready { parser.parse(source, None) } else { None };
    let Some(tree) = tree else {
        return vec![Span::loose(0, lines.len(), "module")];
    };
    let mut collector = Collector { grammar, source, lines, found: Vec::new(), owners: vec![None; lines.len()] };
    collector.visit(tree.root_node(), &Scope { owner: None, prefix: String::new(), has_methods: false, depth: 0 });
    collector.into_spans()
}

struct Definition {
    kind: &'static str,
    symbol: String,
    qualified_name: String,
    /// Where its first line stands; later lines of a container are its members' surroundings.
    start: usize,
}

/// What the children of a node are inside of.
struct Scope {
    owner: Option<usize>,
    prefix: String,
    has_methods: bool,
    depth: usize,
}

struct Collector<'source> {
    grammar: &'source Grammar,
    source: &'source str,
    lines: &'source [&'source str],
    found: Vec<Definition>,
    /// For each line the innermost definition that it belongs to.
    owners: Vec<Option<usize>>,
}

impl Collector<'_> {
    fn visit(&mut self, parent: Node<'_>, scope: &Scope) {
        if scope.depth > MAX_DEPTH {
            return;
        }
        let mut cursor = parent.walk();
        for node in parent.named_children(&mut cursor) {
            match self.grammar.role(node, self.source) {
                Role::Definition { kind, name } => {
                    let kind = if kind == "function" && scope.has_methods { "method" } else { kind };
                    self.claim(node, scope, kind, &name);
                }
                Role::Container { kind, name, body, has_methods } => {
                    let owner = self.claim(node, scope, kind, &name);
                    let prefix = self.qualified(scope, &name);
                    self.visit(body, &Scope { owner: Some(owner), prefix, has_methods, depth: scope.depth + 1 });
                }
                Role::Transparent => {
                    let Scope { owner, has_methods, depth, .. } = *scope;
                    self.visit(node, &Scope { owner, prefix: scope.prefix.clone(), has_methods, depth: depth + 1 });
                }
                Role::Loose => {}
            }
        }
    }

    /// Gives the definition its lines, as far as no earlier neighbour has them.
    fn claim(&mut self, node: Node<'_>, scope: &Scope, kind: &'static str, name: &str) -> usize {
        let (start, end) = (self.start_row(node), last_row(node));
        let index = self.found.len();
        self.found.push(Definition {
            kind,
            symbol: name.rsplit(self.grammar.separator()).next().unwrap_or(name).to_owned(),
            qualified_name: self.qualified(scope, name),
            start,
        });
        for owner in self.owners.iter_mut().take(end + 1).skip(start) {
            if *owner == scope.owner {
                *owner = Some(index);
            }
        }
        index
    }

    fn qualified(&self, scope: &Scope, name: &str) -> String {
        if scope.prefix.is_empty() {
            return name.to_owned();
        }
        format!("{}{}{name}", scope.prefix, self.grammar.separator())
    }

    /// The row where the comments and attributes right above the definition start.
    fn start_row(&self, node: Node<'_>) -> usize {
        let mut row = node.start_position().row;
        let mut above = node.prev_sibling();
        while let Some(sibling) = above {
            let start = sibling.start_position();
            let adjacent = last_row(sibling) + 1 >= row;
            // A comment behind code belongs to that code.
            let before = self.lines.get(start.row).and_then(|line| line.get(..start.column)).unwrap_or("");
            if !adjacent || !is_leading(sibling, self.source) || !before.trim().is_empty() {
                break;
            }
            row = start.row;
            above = sibling.prev_sibling();
        }
        row
    }

    fn into_spans(self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut row = 0;
        while row < self.owners.len() {
            let owner = self.owners[row];
            let end = (row..self.owners.len()).find(|next| self.owners[*next] != owner).unwrap_or(self.owners.len());
            spans.push(match owner.map(|index| &self.found[index]) {
                None => Span::loose(row, end, "module"),
                Some(definition) => Span {
                    kind: if definition.start == row { definition.kind } else { "members" },
                    symbol: Some(definition.symbol.clone()),
                    qualified_name: Some(definition.qualified_name.clone()),
                    ..Span::loose(row, end, "module")
                },
            });
            row = end;
        }
        spans
    }
}

/// Last row with text; a node that ends in column 0 ended with the line feed of the row before.
fn last_row(node: Node<'_>) -> usize {
    let (start, end) = (node.start_position(), node.end_position());
    if end.column == 0 && end.row > start.row { end.row - 1 } else { end.row }
}
