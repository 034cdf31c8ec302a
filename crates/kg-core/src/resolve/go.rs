//! Go import paths: module path from the nearest fitting `go.mod`, then the directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    facts::Reference,
    language::Language,
    resolve::{Outcome, Reason, Resolution, SourceTree, Target, directory, join},
};

pub(super) struct GoResolver<'t> {
    tree: &'t SourceTree,
    /// Module path and directory, longest path first.
    modules: Vec<(String, String)>,
    /// Module paths that any `go.mod` requires, longest first.
    required: Vec<String>,
    /// Go files by directory.
    packages: BTreeMap<&'t str, Vec<&'t str>>,
    definitions: HashMap<(&'t str, &'t str), (&'t str, usize)>,
}

impl<'t> GoResolver<'t> {
    pub(super) fn new(tree: &'t SourceTree) -> Self {
        let mut packages: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut definitions = HashMap::new();
        for (path, file) in tree.files.iter().filter(|(_, file)| file.language == Language::Go) {
            let home = directory(path);
            packages.entry(home).or_default().push(path);
            // Names of a test file are not visible to importers.
            let public = file.facts.definitions.iter().enumerate();
            for (index, definition) in public.filter(|_| !path.ends_with("_test.go")) {
                let name = (home, definition.qualified_name.as_str());
                definitions.entry(name).or_insert((path.as_str(), index));
            }
        }
        let mut modules = Vec::new();
        let mut required = BTreeSet::new();
        for (path, text) in &tree.manifests {
            if path.rsplit('/').next() == Some("go.mod") {
                read_module(directory(path), text, &mut modules, &mut required);
            }
        }
        modules.sort_by(|left, right| right.0.len().cmp(&left.0.len()).then(left.cmp(right)));
        let mut required: Vec<String> = required.into_iter().collect();
        required.sort_by_key(|path| std::cmp::Reverse(path.len()));
        Self { tree, modules, required, packages, definitions }
    }

    pub(super) fn resolve(&self, path: &str, reference: &Reference) -> Outcome {
        let import = reference.module.as_str();
        let home = if import.starts_with("./") || import.starts_with("../") {
            join(directory(path), import)
        } else {
            self.modules.iter().find_map(|(module, home)| join(home, inside(import, module)?))
        };
        let Some(home) = home else { return self.external(import) };
        if !self.packages.contains_key(home.as_str()) {
            return Outcome::Unresolved(Reason::NoSuchModule);
        }
        let Some(name) = reference.name.as_deref() else {
            return Outcome::exact(Target::Package(home));
        };
        match self.definitions.get(&(home.as_str(), name)) {
            Some((path, index)) => Outcome::exact(Target::Definition { path: (*path).to_owned(), index: *index }),
            None => Outcome::Internal {
                target: Target::Package(home),
                resolution: Resolution::MemberUnknown,
                via: Vec::new(),
            },
        }
    }

    /// The import path of the package that holds the file.
    pub(super) fn package_name(&self, path: &str) -> String {
        let home = directory(path);
        self.directory_name(home).unwrap_or_else(|| home.to_owned())
    }

    /// The import path of a directory with Go files.
    pub(super) fn directory_name(&self, home: &str) -> Option<String> {
        let files = self.packages.get(home)?;
        let found = self
            .modules
            .iter()
            .filter_map(|(module, base)| {
                let rest = if base.is_empty() { Some(home) } else { inside(home, base) };
                Some((base.len(), module, rest?))
            })
            .max_by_key(|(length, _, _)| *length);
        let clause = || {
            let first = files.first()?;
            self.tree.files.get(*first)?.facts.package.clone()
        };
        match found {
            Some((_, module, "")) => Some(module.clone()),
            Some((_, module, rest)) => Some(format!("{module}/{rest}")),
            None => clause(),
        }
    }

    fn external(&self, import: &str) -> Outcome {
        let first = import.split('/').next().unwrap_or(import);
        let module = self.required.iter().find(|module| inside(import, module).is_some());
        let (package, declared) = match module {
            Some(module) => (module.clone(), true),
            // No dot in the first part: the standard library, or cgo's "C".
            None if !first.contains('.') => (import.to_owned(), true),
            None => (import.splitn(4, '/').take(3).collect::<Vec<_>>().join("/"), false),
        };
        Outcome::External { ecosystem: "go", package, declared }
    }
}

/// What stands after `base/` in a path, empty if both are equal.
fn inside<'p>(path: &'p str, base: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(base)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

fn read_module(home: &str, text: &str, modules: &mut Vec<(String, String)>, required: &mut BTreeSet<String>) {
    let mut block = "";
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("").trim();
        let mut words = line.split_whitespace();
        let (directive, rest): (&str, Vec<&str>) = match (block, words.next()) {
            (_, None) => continue,
            ("", Some(word)) => (word, words.collect()),
            (_, Some(")")) => {
                block = "";
                continue;
            }
            (inside, Some(word)) => (inside, std::iter::once(word).chain(words).collect()),
        };
        if rest == ["("] {
            block = directive;
            continue;
        }
        let unquoted: Vec<&str> = rest.iter().map(|word| word.trim_matches('"')).collect();
        match (directive, unquoted.as_slice()) {
            ("module", [path, ..]) => modules.push(((*path).to_owned(), home.to_owned())),
            ("require", [path, ..]) => {
                required.insert((*path).to_owned());
            }
            ("replace", [path, .., target]) if target.starts_with('.') => {
                modules.extend(join(home, target).map(|base| ((*path).to_owned(), base)));
            }
            _ => {}
        }
    }
}
