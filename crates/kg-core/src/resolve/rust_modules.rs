//! Rust module trees: from each target's root file down `mod` declarations, as rustc finds the files.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::{
    facts::{DefinitionKind, Reference, ReferenceKind},
    language::Language,
    resolve::{SourceTree, ancestors, directory, join, rust_packages::Package},
};

/// Where a module stands in the list of all modules.
pub(super) type ModuleId = usize;

/// A module: a file, or an inline block in a file.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) path: String,
    /// Inline module path within the file.
    pub(super) scope: String,
    pub(super) parent: Option<ModuleId>,
    pub(super) root: ModuleId,
    /// Index of the package, if a `Cargo.toml` covers the file.
    pub(super) package: Option<usize>,
    pub(super) children: HashMap<String, Vec<ModuleId>>,
    /// `crate_name::a::b`.
    pub(super) full_name: String,
    /// Directory in which files of child modules lie.
    child_directory: String,
}

/// All modules of a tree.
#[derive(Debug, Default)]
pub(super) struct Modules {
    pub(super) list: Vec<Module>,
    by_place: HashMap<(String, String), Vec<ModuleId>>,
    /// Root module of each package's library.
    pub(super) libraries: HashMap<usize, ModuleId>,
}

impl Modules {
    pub(super) fn new(tree: &SourceTree, packages: &[Package]) -> Self {
        let mut modules = Self::default();
        for (index, package) in packages.iter().enumerate() {
            for root in &package.roots {
                let is_library = package.library_root.as_ref() == Some(root);
                let name = if is_library { package.library_name.clone() } else { target_name(root) };
                let id = modules.crate_from(tree, root, Some(index), name);
                if is_library {
                    modules.libraries.insert(index, id);
                }
            }
        }
        modules.add_detached(tree, packages);
        modules
    }

    /// The modules that a place in a file is; a file shared through `#[path]` is several.
    pub(super) fn at(&self, path: &str, scope: &str) -> &[ModuleId] {
        let place = (path.to_owned(), scope.to_owned());
        self.by_place.get(&place).map_or(&[], Vec::as_slice)
    }

    pub(super) fn get(&self, id: ModuleId) -> Option<&Module> {
        self.list.get(id)
    }

    /// Files that no target reaches: their `crate` is the library of their package, else themselves.
    fn add_detached(&mut self, tree: &SourceTree, packages: &[Package]) {
        let by_directory: HashMap<&str, usize> =
            packages.iter().enumerate().map(|(index, package)| (package.directory.as_str(), index)).collect();
        let mut loose: Vec<&String> =
            tree.files.iter().filter(|(_, file)| file.language == Language::Rust).map(|(path, _)| path).collect();
        // Likely roots first, so that they pull in their modules before these are looked at alone.
        loose.sort_by_key(|path| {
            let name = path.rsplit('/').next().unwrap_or("");
            (!matches!(name, "lib.rs" | "main.rs"), path.matches('/').count(), path.len())
        });
        for path in loose {
            if !self.at(path, "").is_empty() {
                continue;
            }
            let package = ancestors(path).find_map(|above| by_directory.get(above)).copied();
            let first_new = self.list.len();
            let root = self.crate_from(tree, path, package, target_name(path));
            let library = package.and_then(|index| self.libraries.get(&index)).copied();
            if let Some(library) = library {
                for module in self.list.iter_mut().skip(first_new) {
                    module.root = library;
                }
                if let Some(module) = self.list.get_mut(root) {
                    module.parent = Some(library);
                }
            }
        }
    }

    fn crate_from(&mut self, tree: &SourceTree, path: &str, package: Option<usize>, name: String) -> ModuleId {
        let root = self.list.len();
        let child_directory = directory(path).to_owned();
        let module = Module {
            path: path.to_owned(),
            scope: String::new(),
            parent: None,
            root,
            package,
            children: HashMap::new(),
            full_name: name,
            child_directory,
        };
        self.add(module);
        let mut waiting = VecDeque::from([root]);
        let mut seen: HashSet<(String, String)> = HashSet::new();
        while let Some(parent) = waiting.pop_front() {
            for child in self.children_of(tree, parent) {
                // A file that includes itself through #[path] must end somewhere.
                if !seen.insert((child.path.clone(), child.full_name.clone()))
                    || child.full_name.matches("::").count() > 64
                {
                    continue;
                }
                let name = child.full_name.rsplit("::").next().unwrap_or("").to_owned();
                let id = self.add(child);
                if let Some(module) = self.list.get_mut(parent) {
                    module.children.entry(name).or_default().push(id);
                }
                waiting.push_back(id);
            }
        }
        root
    }

    fn add(&mut self, module: Module) -> ModuleId {
        let id = self.list.len();
        self.by_place.entry((module.path.clone(), module.scope.clone())).or_default().push(id);
        self.list.push(module);
        id
    }

    fn children_of(&self, tree: &SourceTree, parent_id: ModuleId) -> Vec<Module> {
        let Some(parent) = self.list.get(parent_id) else { return Vec::new() };
        let Some(file) = tree.files.get(&parent.path) else { return Vec::new() };
        let mut found = Vec::new();
        for definition in &file.facts.definitions {
            let outer = definition.qualified_name.rsplit_once("::").map_or("", |(outer, _)| outer);
            if definition.kind == DefinitionKind::Module && outer == parent.scope {
                found.push(Module {
                    path: parent.path.clone(),
                    scope: definition.qualified_name.clone(),
                    child_directory: join(&parent.child_directory, &definition.name).unwrap_or_default(),
                    ..parent.child(parent_id, &definition.name)
                });
            }
        }
        for declared in &file.facts.references {
            if declared.kind != ReferenceKind::Declares || declared.scope != parent.scope {
                continue;
            }
            let Some((path, child_directory)) = declared_file(tree, parent, declared) else { continue };
            found.push(Module { path, child_directory, ..parent.child(parent_id, &declared.module) });
        }
        found
    }
}

impl Module {
    fn child(&self, own_id: ModuleId, name: &str) -> Self {
        Self {
            path: String::new(),
            scope: String::new(),
            parent: Some(own_id),
            root: self.root,
            package: self.package,
            children: HashMap::new(),
            full_name: format!("{}::{name}", self.full_name),
            child_directory: String::new(),
        }
    }
}

/// The file of `mod name;` and the directory in which its own children lie.
pub(super) fn declared_file(tree: &SourceTree, parent: &Module, declared: &Reference) -> Option<(String, String)> {
    if let Some(attribute) = &declared.path_attribute {
        let base = if parent.scope.is_empty() { directory(&parent.path) } else { &parent.child_directory };
        let path = join(base, attribute)?;
        let child_directory = directory(&path).to_owned();
        return tree.files.contains_key(&path).then_some((path, child_directory));
    }
    let stem = join(&parent.child_directory, &declared.module)?;
    [format!("{stem}.rs"), format!("{stem}/mod.rs")]
        .into_iter()
        .find(|path| tree.files.contains_key(path))
        .map(|path| (path, stem))
}

/// The crate name of a target that is not a library: its file, or the directory of a `main.rs`.
fn target_name(root: &str) -> String {
    let name = root.rsplit('/').next().unwrap_or(root);
    let stem = name.strip_suffix(".rs").unwrap_or(name);
    let parent = directory(root).rsplit('/').next().unwrap_or("");
    let is_folder_target = matches!(stem, "main" | "mod" | "lib") && !matches!(parent, "src" | "");
    let chosen = if is_folder_target { parent } else { stem };
    chosen.replace('-', "_")
}
