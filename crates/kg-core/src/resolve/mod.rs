//! Resolution: every reference of every file becomes an edge, an external package or an unresolved row.

mod go;
mod javascript;
mod javascript_config;
mod python;
mod rust;
mod rust_modules;
mod rust_packages;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    facts::{Definition, FileFacts, Reference},
    language::Language,
};

/// A file of the tree with what extraction found in it.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Its language.
    pub language: Language,
    /// What it defines and refers to.
    pub facts: FileFacts,
}

/// All that resolution looks at: no file system, so that it can be repeated at will.
#[derive(Debug, Clone, Default)]
pub struct SourceTree {
    /// Source files by path from the root, with `/` between the parts.
    pub files: BTreeMap<String, SourceFile>,
    /// Every other path of the tree (a stylesheet that is imported, a package's data).
    pub other_paths: BTreeSet<String>,
    /// Text of the manifests by path (`Cargo.toml`, `package.json`, `tsconfig.json`, `go.mod`, …).
    pub manifests: BTreeMap<String, String>,
}

/// Where an edge leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A source file as a whole.
    File(String),
    /// One definition, by its position in the facts of the file.
    Definition {
        /// The defining file.
        path: String,
        /// Index into `FileFacts::definitions`.
        index: usize,
    },
    /// A directory that is imported as one thing (a Go package, a Python namespace).
    Package(String),
    /// A file that is not source code.
    Asset(String),
}

/// How an edge was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// The target is named in full.
    Exact,
    /// Found through a file that passes the name on.
    Reexport,
    /// A glob or star import: all names of the target.
    Star,
    /// The file is certain, the name in it was not found.
    MemberUnknown,
    /// Several targets fit (branches for several platforms); the first was taken.
    Ambiguous,
    /// A rule of thumb, for example a script's own directory.
    Heuristic,
}

impl Resolution {
    /// The name under which it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reexport => "reexport",
            Self::Star => "star",
            Self::MemberUnknown => "member_unknown",
            Self::Ambiguous => "ambiguous",
            Self::Heuristic => "heuristic",
        }
    }

    /// How sure the edge is, 0 to 1; the order is what matters, the figures are chosen.
    #[must_use]
    pub fn confidence(self) -> f32 {
        match self {
            Self::Exact => 1.0,
            Self::Reexport => 0.95,
            Self::Star => 0.9,
            Self::Heuristic => 0.8,
            Self::Ambiguous => 0.7,
            Self::MemberUnknown => 0.5,
        }
    }
}

/// Why a reference leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The target is computed at run time.
    Computed,
    /// A relative path or module declaration without a file.
    NoSuchFile,
    /// The package is in the tree, the module in it is not.
    NoSuchModule,
    /// The module is in the tree, the name in it is not.
    NoSuchName,
    /// The first part of the path is neither local nor a declared dependency.
    UnknownName,
    /// A workspace package whose entry file is not in the tree (often built).
    NoEntryFile,
    /// An alias such as `@/x` without a configuration that explains it.
    UnknownAlias,
    /// `super` beyond the top, or a relative import above the root.
    OutsideTree,
}

impl Reason {
    /// The name under which it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::NoSuchFile => "no_such_file",
            Self::NoSuchModule => "no_such_module",
            Self::NoSuchName => "no_such_name",
            Self::UnknownName => "unknown_name",
            Self::NoEntryFile => "no_entry_file",
            Self::UnknownAlias => "unknown_alias",
            Self::OutsideTree => "outside_tree",
        }
    }
}

/// What became of one reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It leads to something in the tree.
    Internal {
        /// Where it leads.
        target: Target,
        /// How that was found.
        resolution: Resolution,
        /// Files that pass the name on, in order.
        via: Vec<String>,
    },
    /// It leads to a package outside.
    External {
        /// `cargo`, `pypi`, `npm`, `node` or `go`.
        ecosystem: &'static str,
        /// The package, once per repository.
        package: String,
        /// Whether a manifest or the standard library names it.
        declared: bool,
    },
    /// It leads nowhere that is known.
    Unresolved(Reason),
}

impl Outcome {
    pub(crate) fn exact(target: Target) -> Self {
        Self::Internal { target, resolution: Resolution::Exact, via: Vec::new() }
    }
}

/// The resolvers of all languages over one tree.
pub struct Resolver<'t> {
    rust: rust::RustResolver<'t>,
    python: python::PythonResolver<'t>,
    javascript: javascript::JavaScriptResolver<'t>,
    go: go::GoResolver<'t>,
}

impl<'t> Resolver<'t> {
    /// Reads manifests and lays out modules and packages.
    #[must_use]
    pub fn new(tree: &'t SourceTree) -> Self {
        Self {
            rust: rust::RustResolver::new(tree),
            python: python::PythonResolver::new(tree),
            javascript: javascript::JavaScriptResolver::new(tree),
            go: go::GoResolver::new(tree),
        }
    }

    /// Resolves one reference of a file; every reference has an outcome.
    #[must_use]
    pub fn resolve(&self, path: &str, language: Language, reference: &Reference) -> Outcome {
        if reference.computed {
            return Outcome::Unresolved(Reason::Computed);
        }
        match language {
            Language::Rust => self.rust.resolve(path, reference),
            Language::Python => self.python.resolve(path, reference),
            Language::TypeScript | Language::JavaScript => self.javascript.resolve(path, reference),
            Language::Go => self.go.resolve(path, reference),
        }
    }

    /// The name by which people call a file as a module (`bus_core::claim`, `pkg.util`, `src/util`).
    #[must_use]
    pub fn module_name(&self, path: &str, language: Language) -> String {
        match language {
            Language::Rust => self.rust.module_name(path),
            Language::Python => self.python.module_name(path),
            Language::TypeScript | Language::JavaScript => javascript::module_name(path),
            Language::Go => self.go.package_name(path),
        }
    }

    /// The directory that is compiled as one thing with the file, where the language has that.
    #[must_use]
    pub fn package_of(&self, path: &str, language: Language) -> Option<String> {
        (language == Language::Go).then(|| directory(path).to_owned())
    }

    /// The import path of a package directory, if a resolver knows one.
    #[must_use]
    pub fn package_name(&self, directory: &str) -> String {
        self.go.directory_name(directory).unwrap_or_else(|| directory.replace('/', "."))
    }
}

/// Definitions and bindings of all files of some languages, by name.
struct Names<'t> {
    tree: &'t SourceTree,
    definitions: HashMap<&'t str, HashMap<&'t str, usize>>,
    bindings: HashMap<&'t str, HashMap<&'t str, Vec<&'t Reference>>>,
}

impl<'t> Names<'t> {
    fn new(tree: &'t SourceTree, languages: &[Language]) -> Self {
        let mut names = Self { tree, definitions: HashMap::new(), bindings: HashMap::new() };
        for (path, file) in &tree.files {
            if !languages.contains(&file.language) {
                continue;
            }
            let definitions = names.definitions.entry(path).or_default();
            for (index, definition) in file.facts.definitions.iter().enumerate() {
                definitions.entry(definition.qualified_name.as_str()).or_insert(index);
            }
            let bindings = names.bindings.entry(path).or_default();
            for reference in &file.facts.references {
                if let Some(binding) = &reference.binding {
                    bindings.entry(binding.as_str()).or_default().push(reference);
                }
            }
        }
        names
    }

    fn definition(&self, path: &str, qualified_name: &str) -> Option<usize> {
        self.definitions.get(path)?.get(qualified_name).copied()
    }

    fn bindings(&self, path: &str, name: &str) -> &[&'t Reference] {
        self.bindings.get(path).and_then(|names| names.get(name)).map_or(&[], Vec::as_slice)
    }

    fn facts(&self, path: &str) -> Option<&'t FileFacts> {
        self.tree.files.get(path).map(|file| &file.facts)
    }

    fn definition_at(&self, path: &str, index: usize) -> Option<&'t Definition> {
        self.facts(path)?.definitions.get(index)
    }
}

/// The directory of a path, empty for the root.
pub(crate) fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Joins and normalises `.` and `..`; `None` when the result lies above the root.
pub(crate) fn join(directory: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// All directories above a path, nearest first, ending with the root.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut next = Some(directory(path));
    std::iter::from_fn(move || {
        let current = next?;
        next = (!current.is_empty()).then(|| directory(current));
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_inside_the_root_only() {
        assert_eq!(join("a/b", "../c/./d"), Some("a/c/d".to_owned()));
        assert_eq!(join("", "x"), Some("x".to_owned()));
        assert_eq!(join("a", "../.."), None);
    }

    #[test]
    fn ancestors_end_with_the_root() {
        assert_eq!(ancestors("a/b/c.rs").collect::<Vec<_>>(), ["a/b", "a", ""]);
        assert_eq!(ancestors("c.rs").collect::<Vec<_>>(), [""]);
    }
}
