//! Rust paths: keywords, modules, items, `use` bindings, globs, dependencies, in the order of the language.

use std::collections::{HashMap, HashSet};

use crate::{
    facts::{DefinitionKind, Reference, ReferenceKind},
    language::Language,
    resolve::{
        Names, Outcome, Reason, Resolution, SourceTree, Target,
        rust_modules::{ModuleId, Modules, declared_file},
        rust_packages::{Dependency, Package, packages},
    },
};

/// Steps after which a lookup gives up; real chains of re-exports stay under twenty.
const STEP_LIMIT: u32 = 2_000;

const STANDARD: [&str; 5] = ["std", "core", "alloc", "proc_macro", "test"];

pub(super) struct RustResolver<'t> {
    tree: &'t SourceTree,
    names: Names<'t>,
    packages: Vec<Package>,
    modules: Modules,
    by_directory: HashMap<String, usize>,
    scopes: HashMap<(&'t str, &'t str), ScopeNames<'t>>,
    /// `#[macro_export]` puts a macro at the root of its crate, whatever file it stands in.
    macros: HashMap<(Option<usize>, &'t str), (&'t str, usize)>,
}

/// What `use` brings into one module.
#[derive(Default)]
struct ScopeNames<'t> {
    bound: HashMap<&'t str, Vec<&'t Reference>>,
    globs: Vec<&'t Reference>,
}

#[derive(Clone)]
enum Found {
    Module(ModuleId),
    Definition {
        path: String,
        index: usize,
    },
    External(String),
    /// In this module, but made by a macro or by a foreign glob.
    Somewhere(ModuleId),
}

/// What one lookup has been through.
struct Trail<'t> {
    origin: &'t Reference,
    via: Vec<String>,
    visited: HashSet<(ModuleId, String)>,
    star: bool,
    ambiguous: bool,
    steps: u32,
}

impl<'t> RustResolver<'t> {
    pub(super) fn new(tree: &'t SourceTree) -> Self {
        let packages = packages(tree);
        let modules = Modules::new(tree, &packages);
        let by_directory =
            packages.iter().enumerate().map(|(index, package)| (package.directory.clone(), index)).collect();
        let mut scopes: HashMap<(&str, &str), ScopeNames<'_>> = HashMap::new();
        let mut macros = HashMap::new();
        for (path, file) in tree.files.iter().filter(|(_, file)| file.language == Language::Rust) {
            for reference in &file.facts.references {
                if !matches!(reference.kind, ReferenceKind::Imports | ReferenceKind::Reexports) {
                    continue;
                }
                let scope = scopes.entry((path.as_str(), reference.scope.as_str())).or_default();
                if let Some(binding) = &reference.binding {
                    scope.bound.entry(binding).or_default().push(reference);
                } else if reference.name.as_deref() == Some("*") {
                    scope.globs.push(reference);
                }
            }
            let package =
                modules.at(path, "").first().and_then(|id| modules.get(*id)).and_then(|module| module.package);
            for (index, definition) in file.facts.definitions.iter().enumerate() {
                if definition.kind == DefinitionKind::Macro {
                    let place = (path.as_str(), index);
                    macros.entry((package, definition.name.as_str())).or_insert(place);
                }
            }
        }
        let names = Names::new(tree, &[Language::Rust]);
        Self { tree, names, packages, modules, by_directory, scopes, macros }
    }

    pub(super) fn module_name(&self, path: &str) -> String {
        let first = self.modules.at(path, "").first().and_then(|id| self.modules.get(*id));
        first.map_or_else(|| path.to_owned(), |module| module.full_name.clone())
    }

    pub(super) fn resolve(&self, path: &str, reference: &Reference) -> Outcome {
        let mut places = self.modules.at(path, &reference.scope);
        if places.is_empty() {
            places = self.modules.at(path, "");
        }
        let mut reason = None;
        for place in places {
            let outcome = if reference.kind == ReferenceKind::Declares {
                self.declaration(*place, reference)
            } else {
                self.lookup(*place, reference)
            };
            match outcome {
                Ok(outcome) => return outcome,
                Err(found) => reason = reason.or(Some(found)),
            }
        }
        Outcome::Unresolved(reason.unwrap_or(Reason::UnknownName))
    }

    fn declaration(&self, place: ModuleId, reference: &Reference) -> Result<Outcome, Reason> {
        let module = self.modules.get(place).ok_or(Reason::NoSuchFile)?;
        let (path, _) = declared_file(self.tree, module, reference).ok_or(Reason::NoSuchFile)?;
        Ok(Outcome::exact(Target::File(path)))
    }

    fn lookup(&self, place: ModuleId, reference: &Reference) -> Result<Outcome, Reason> {
        let mut trail = Trail {
            origin: reference,
            via: Vec::new(),
            visited: HashSet::new(),
            star: false,
            ambiguous: false,
            steps: 0,
        };
        let found = self.path(place, &reference.module, &mut trail)?;
        let own_path = self.modules.get(place).map_or("", |module| module.path.as_str());
        self.outcome(own_path, found, trail)
    }

    fn outcome(&self, own_path: &str, found: Found, mut trail: Trail<'_>) -> Result<Outcome, Reason> {
        // A `use` in the same file passes nothing on: it only says what the name means.
        trail.via.retain(|step| step != own_path);
        let through_others = !trail.via.is_empty();
        let (target, path, unknown) = match found {
            Found::External(package) => match trail.via.pop() {
                // Outside in the end, but through a file of the tree that passes it on.
                Some(path) => (Target::File(path.clone()), path, false),
                None => {
                    return Ok(Outcome::External { ecosystem: "cargo", package, declared: true });
                }
            },
            Found::Definition { path, index } => (Target::Definition { path: path.clone(), index }, path, false),
            Found::Module(id) | Found::Somewhere(id) => {
                let module = self.modules.get(id).ok_or(Reason::NoSuchModule)?;
                let inline = self.names.definition(&module.path, &module.scope);
                let path = module.path.clone();
                let target = match inline {
                    Some(index) => Target::Definition { path: path.clone(), index },
                    None => Target::File(path.clone()),
                };
                (target, path, matches!(found, Found::Somewhere(_)))
            }
        };
        let mut via = trail.via;
        via.reverse();
        via.retain(|step| *step != path);
        via.dedup();
        let resolution = if unknown {
            Resolution::MemberUnknown
        } else if trail.ambiguous {
            Resolution::Ambiguous
        } else if trail.origin.name.as_deref() == Some("*") || trail.star {
            Resolution::Star
        } else if through_others {
            Resolution::Reexport
        } else {
            Resolution::Exact
        };
        Ok(Outcome::Internal { target, resolution, via })
    }

    fn path(&self, place: ModuleId, path: &str, trail: &mut Trail<'_>) -> Result<Found, Reason> {
        trail.steps += 1;
        if trail.steps > STEP_LIMIT {
            return Err(Reason::UnknownName);
        }
        let segments: Vec<&str> = path.split("::").collect();
        let module = self.modules.get(place).ok_or(Reason::NoSuchModule)?;
        let (mut found, mut used) = match segments.as_slice() {
            ["", name, ..] => (self.dependency(place, name)?.ok_or(Reason::UnknownName)?, 2),
            ["crate", ..] => (Found::Module(module.root), 1),
            ["self", ..] => (Found::Module(place), 1),
            ["super", ..] => (Found::Module(module.parent.ok_or(Reason::OutsideTree)?), 1),
            [name, rest @ ..] => (self.first_name(place, name, rest.is_empty(), trail)?, 1),
            [] => return Err(Reason::UnknownName),
        };
        while segments.get(used) == Some(&"super") {
            let Found::Module(id) = found else { return Err(Reason::OutsideTree) };
            let parent = self.modules.get(id).and_then(|module| module.parent);
            found = Found::Module(parent.ok_or(Reason::OutsideTree)?);
            used += 1;
        }
        self.descend(found, segments.get(used..).unwrap_or(&[]), trail)
    }

    fn descend(&self, mut found: Found, segments: &[&str], trail: &mut Trail<'_>) -> Result<Found, Reason> {
        for (index, name) in segments.iter().enumerate() {
            let rest = segments.get(index + 1..).unwrap_or(&[]);
            found = match found {
                Found::External(_) | Found::Somewhere(_) => return Ok(found),
                Found::Definition { path, index } => {
                    let Some(owner) = self.names.definition_at(&path, index) else {
                        return Ok(Found::Definition { path, index });
                    };
                    let member = format!("{}::{name}", owner.qualified_name);
                    match self.names.definition(&path, &member) {
                        Some(index) => Found::Definition { path, index },
                        // A variant, or a method in another file: the type is what is known.
                        None => return Ok(Found::Definition { path, index }),
                    }
                }
                Found::Module(id) => {
                    if let Some(branch) = self.branches(id, name, rest, trail) {
                        return Ok(branch);
                    }
                    match self.member(id, name, rest.is_empty(), trail) {
                        Some(found) => found,
                        None if self.may_hide_names(id) => return Ok(Found::Somewhere(id)),
                        None if rest.is_empty() => return Err(Reason::NoSuchName),
                        None => return Err(Reason::NoSuchModule),
                    }
                }
            };
        }
        Ok(found)
    }

    /// Several files for one module name (a file per platform): the first in which the rest is found.
    fn branches(&self, id: ModuleId, name: &str, rest: &[&str], trail: &mut Trail<'_>) -> Option<Found> {
        let children = self.modules.get(id)?.children.get(name).filter(|ids| ids.len() > 1)?;
        for child in children {
            if let Ok(found) = self.descend(Found::Module(*child), rest, trail) {
                trail.ambiguous = true;
                return Some(found);
            }
        }
        None
    }

    fn may_hide_names(&self, id: ModuleId) -> bool {
        let Some(module) = self.modules.get(id) else { return false };
        let opaque = self.names.facts(&module.path).is_some_and(|facts| facts.opaque);
        opaque || !self.foreign_globs(id).is_empty()
    }

    fn first_name(&self, place: ModuleId, name: &str, is_last: bool, trail: &mut Trail<'_>) -> Result<Found, Reason> {
        if let Some(found) = self.local(place, name, is_last) {
            return Ok(found);
        }
        if let Some(found) = self.dependency(place, name)? {
            return Ok(found);
        }
        if let Some(found) = self.member(place, name, is_last, trail) {
            return Ok(found);
        }
        let root = self.modules.get(place).map_or(place, |module| module.root);
        // Edition 2015 starts `use` paths at the root of the crate.
        if let Some(found) = self.local(root, name, is_last) {
            return Ok(found);
        }
        let anywhere = self.packages.iter().position(|package| package.library_name == name);
        let library = anywhere.and_then(|index| self.modules.libraries.get(&index));
        if let Some(id) = library {
            return Ok(Found::Module(*id));
        }
        // Nothing here has the name, so it comes with the foreign glob, if there is just one.
        match self.foreign_globs(place).as_slice() {
            [package] => Ok(Found::External(package.clone())),
            _ => Err(Reason::UnknownName),
        }
    }

    /// Packages outside whose names come into a module by `use package::…::*`.
    fn foreign_globs(&self, id: ModuleId) -> Vec<String> {
        let Some(module) = self.modules.get(id) else { return Vec::new() };
        let scope = self.scopes.get(&(module.path.as_str(), module.scope.as_str()));
        let mut packages: Vec<String> = scope
            .into_iter()
            .flat_map(|scope| &scope.globs)
            .filter_map(|glob| {
                let path = glob.module.trim_start_matches("::");
                match self.dependency(id, path.split("::").next().unwrap_or("")) {
                    Ok(Some(Found::External(package))) => Some(package),
                    _ => None,
                }
            })
            .collect();
        packages.sort();
        packages.dedup();
        packages
    }

    /// Child modules and items, without what `use` brings.
    fn local(&self, id: ModuleId, name: &str, is_last: bool) -> Option<Found> {
        let module = self.modules.get(id)?;
        let child = module.children.get(name).and_then(|ids| ids.first());
        let child = child.map(|id| Found::Module(*id));
        let qualified = if module.scope.is_empty() { name.to_owned() } else { format!("{}::{name}", module.scope) };
        let item = self
            .names
            .definition(&module.path, &qualified)
            .filter(|index| {
                self.names
                    .definition_at(&module.path, *index)
                    .is_some_and(|definition| definition.kind != DefinitionKind::Module)
            })
            .map(|index| Found::Definition { path: module.path.clone(), index });
        if is_last { item.or(child) } else { child.or(item) }
    }

    fn member(&self, id: ModuleId, name: &str, is_last: bool, trail: &mut Trail<'_>) -> Option<Found> {
        if let Some(found) = self.local(id, name, is_last) {
            return Some(found);
        }
        if !trail.visited.insert((id, name.to_owned())) {
            return None;
        }
        let module = self.modules.get(id)?;
        if let Some(scope) = self.scopes.get(&(module.path.as_str(), module.scope.as_str())) {
            for bound in scope.bound.get(name).into_iter().flatten() {
                if std::ptr::eq(*bound, trail.origin) {
                    continue;
                }
                if let Ok(found) = self.path(id, &bound.module, trail) {
                    trail.via.push(module.path.clone());
                    return Some(found);
                }
            }
            for glob in &scope.globs {
                if std::ptr::eq(*glob, trail.origin) {
                    continue;
                }
                if let Ok(Found::Module(inner)) = self.path(id, &glob.module, trail)
                    && let Some(found) = self.member(inner, name, is_last, trail)
                {
                    trail.via.push(module.path.clone());
                    trail.star = true;
                    return Some(found);
                }
            }
        }
        if id == module.root && is_last {
            let (path, index) = self.macros.get(&(module.package, name))?;
            return Some(Found::Definition { path: (*path).to_owned(), index: *index });
        }
        None
    }

    fn dependency(&self, place: ModuleId, name: &str) -> Result<Option<Found>, Reason> {
        let package = self.modules.get(place).and_then(|module| module.package);
        if let Some((index, package)) = package.and_then(|id| Some((id, self.packages.get(id)?))) {
            match package.dependencies.get(name) {
                Some(Dependency::External(real)) => return Ok(Some(Found::External(real.clone()))),
                Some(Dependency::Member(directory)) => {
                    let member = self.by_directory.get(directory);
                    let library = member.and_then(|id| self.modules.libraries.get(id));
                    let id = library.ok_or(Reason::NoEntryFile)?;
                    return Ok(Some(Found::Module(*id)));
                }
                None => {}
            }
            if package.library_name == name
                && let Some(id) = self.modules.libraries.get(&index)
            {
                return Ok(Some(Found::Module(*id)));
            }
        }
        Ok(STANDARD.contains(&name).then(|| Found::External(name.to_owned())))
    }
}
