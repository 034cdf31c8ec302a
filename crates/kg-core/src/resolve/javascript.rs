//! JavaScript and TypeScript specifiers: relative, aliased, workspace, private, external; then the name in the file.

use crate::{
    facts::{Reference, ReferenceKind},
    language::Language,
    resolve::{
        Names, Outcome, Reason, Resolution, SourceTree, Target, directory,
        javascript_config::{Configuration, NODE_BUILTINS, match_pattern, package_name},
        join,
    },
};

/// Endings that a specifier may leave out, in the order of the TypeScript compiler.
const ENDINGS: [&str; 11] = [".ts", ".tsx", ".d.ts", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".d.mts", ".d.cts"];

/// Written ending, and the endings of the source that it may stand for.
const WRITTEN_FOR: [(&str, &[&str]); 4] = [
    (".js", &[".ts", ".tsx", ".d.ts", ".jsx"]),
    (".jsx", &[".tsx"]),
    (".mjs", &[".mts", ".d.mts"]),
    (".cjs", &[".cts", ".d.cts"]),
];

/// Longest chain of re-exports that is followed.
const DEPTH_LIMIT: u8 = 16;

pub(super) struct JavaScriptResolver<'t> {
    tree: &'t SourceTree,
    names: Names<'t>,
    configuration: Configuration,
}

enum Module {
    File(String),
    Asset(String),
}

impl<'t> JavaScriptResolver<'t> {
    pub(super) fn new(tree: &'t SourceTree) -> Self {
        let names = Names::new(tree, &[Language::TypeScript, Language::JavaScript]);
        Self { tree, names, configuration: Configuration::new(tree) }
    }

    pub(super) fn resolve(&self, path: &str, reference: &Reference) -> Outcome {
        match self.module(path, &reference.module) {
            Ok(Module::Asset(asset)) => Outcome::exact(Target::Asset(asset)),
            Ok(Module::File(file)) => self.in_file(file, reference),
            Err(outcome) => outcome,
        }
    }

    fn in_file(&self, file: String, reference: &Reference) -> Outcome {
        let Some(name) = reference.name.as_deref() else {
            return Outcome::exact(Target::File(file));
        };
        let mut via = Vec::new();
        let (target, resolution) = if name == "*" {
            (Target::File(file), Resolution::Star)
        } else {
            match self.member(&file, name, &mut via, 0) {
                Some((target, resolution)) => (target, resolution),
                None => (Target::File(file), Resolution::MemberUnknown),
            }
        };
        via.reverse();
        via.dedup();
        if let Target::File(path) | Target::Definition { path, .. } = &target {
            via.retain(|step| step != path);
        }
        Outcome::Internal { target, resolution, via }
    }

    /// An exported name: local definition, renamed export, re-export, then `export *`.
    fn member(&self, path: &str, name: &str, via: &mut Vec<String>, depth: u8) -> Option<(Target, Resolution)> {
        if depth > DEPTH_LIMIT {
            return None;
        }
        let facts = self.names.facts(path)?;
        let export = facts.exports.iter().find(|export| export.name == name);
        let local = export.map_or(name, |export| export.local.as_str());
        if let Some(index) = self.names.definition(path, local) {
            let target = Target::Definition { path: path.to_owned(), index };
            return Some((target, Resolution::Exact));
        }
        for bound in self.names.bindings(path, local) {
            if let Some(found) = self.follow(path, bound, bound.name.as_deref(), via, depth) {
                return Some(found);
            }
        }
        let stars = facts.references.iter().filter(|reference| {
            reference.kind == ReferenceKind::Reexports
                && reference.name.as_deref() == Some("*")
                && reference.binding.is_none()
        });
        for star in stars.filter(|_| name != "default") {
            let before = via.len();
            if let Ok(Module::File(file)) = self.module(path, &star.module)
                && let Some((target, _)) = self.member(&file, name, via, depth + 1)
            {
                via.push(path.to_owned());
                return Some((target, Resolution::Star));
            }
            via.truncate(before);
        }
        // `module.exports = require(…)` and default exports of expressions: the file is the answer.
        export.map(|_| (Target::File(path.to_owned()), Resolution::Exact))
    }

    fn follow(
        &self,
        path: &str,
        bound: &Reference,
        name: Option<&str>,
        via: &mut Vec<String>,
        depth: u8,
    ) -> Option<(Target, Resolution)> {
        match (self.module(path, &bound.module), name) {
            (Ok(Module::File(file)), Some("*") | None) => {
                via.push(path.to_owned());
                Some((Target::File(file), Resolution::Reexport))
            }
            (Ok(Module::File(file)), Some(name)) => {
                let found = self.member(&file, name, via, depth + 1);
                let (target, _) = found.unwrap_or((Target::File(file), Resolution::MemberUnknown));
                via.push(path.to_owned());
                Some((target, Resolution::Reexport))
            }
            (Ok(Module::Asset(asset)), _) => {
                via.push(path.to_owned());
                Some((Target::Asset(asset), Resolution::Reexport))
            }
            // Passed on from outside: what is known of the tree ends at this file.
            (Err(Outcome::External { .. }), _) => Some((Target::File(path.to_owned()), Resolution::Reexport)),
            (Err(_), _) => None,
        }
    }

    fn module(&self, from: &str, written: &str) -> Result<Module, Outcome> {
        let language = Language::of_path(from).unwrap_or(Language::JavaScript);
        let specifier = written.split(['?', '!']).next().unwrap_or(written);
        if specifier.starts_with('.') {
            let base = join(directory(from), specifier);
            let base = base.ok_or(Outcome::Unresolved(Reason::OutsideTree))?;
            return self.at(&base, language).ok_or(Outcome::Unresolved(Reason::NoSuchFile));
        }
        if let Some(found) = self.aliased(from, specifier, language) {
            return Ok(found);
        }
        if specifier.starts_with('#')
            && let Some(manifest) = self.configuration.manifest_for(from)
        {
            let found = manifest.private_imports(specifier);
            let found = found.iter().find_map(|path| self.at(path, language));
            return found.ok_or(Outcome::Unresolved(Reason::UnknownAlias));
        }
        if let Some((manifest, rest)) = self.configuration.workspace_package(specifier) {
            let found = manifest.entries(rest);
            let found = found.iter().find_map(|path| self.at(path, language));
            return found.ok_or(Outcome::Unresolved(Reason::NoEntryFile));
        }
        let is_alias = specifier.starts_with('/')
            || specifier.starts_with('#')
            || specifier.starts_with("~/")
            || specifier.starts_with("@/");
        if is_alias {
            let served = specifier.strip_prefix('/').and_then(|path| self.at(path, language));
            return served.ok_or(Outcome::Unresolved(Reason::UnknownAlias));
        }
        Err(self.external(from, specifier))
    }

    fn external(&self, from: &str, specifier: &str) -> Outcome {
        let scheme = specifier.split_once(':');
        let (ecosystem, package, declared) = match scheme {
            Some(("node", module)) => ("node", module.split('/').next().unwrap_or(module).to_owned(), true),
            Some((scheme @ ("http" | "https"), address)) => {
                let host = address.trim_start_matches('/').split('/').next().unwrap_or(address);
                ("npm", format!("{scheme}://{host}"), true)
            }
            Some(_) => ("npm", specifier.to_owned(), false),
            None => {
                let package = package_name(specifier);
                let declared = self.configuration.declares(from, package);
                if NODE_BUILTINS.contains(&package) && !declared {
                    ("node", package.to_owned(), true)
                } else {
                    ("npm", package.to_owned(), declared)
                }
            }
        };
        Outcome::External { ecosystem, package, declared }
    }

    fn aliased(&self, from: &str, specifier: &str, language: Language) -> Option<Module> {
        for aliases in self.configuration.aliases_for(from) {
            let mut fitting: Vec<_> = aliases
                .paths
                .iter()
                .filter_map(|(pattern, targets)| {
                    let star = match_pattern(pattern, specifier)?;
                    Some((pattern.split('*').next().map_or(0, str::len), star, targets))
                })
                .collect();
            // The longest text before the star wins.
            fitting.sort_by_key(|(length, _, _)| std::cmp::Reverse(*length));
            for (_, star, targets) in fitting {
                let found = targets.iter().map(|target| target.replace('*', star));
                let found = found.into_iter().find_map(|path| self.at(&path, language));
                if found.is_some() {
                    return found;
                }
            }
            if let Some(base) = &aliases.base
                && let Some(found) = join(base, specifier).and_then(|path| self.at(&path, language))
            {
                return Some(found);
            }
        }
        None
    }

    /// The file at a path: as written, with another ending, or the index of a directory.
    fn at(&self, base: &str, importer: Language) -> Option<Module> {
        let exact = self.tree.files.contains_key(base).then(|| Module::File(base.to_owned()));
        // TypeScript reads `x.d.ts` or `x.ts` although `x.js` may lie beside it.
        if exact.is_some() && importer == Language::JavaScript {
            return exact;
        }
        for (written, sources) in WRITTEN_FOR {
            if let Some(stem) = base.strip_suffix(written) {
                let found = sources.iter().map(|ending| format!("{stem}{ending}"));
                if let Some(path) = found.into_iter().find(|path| self.tree.files.contains_key(path)) {
                    return Some(Module::File(path));
                }
            }
        }
        if exact.is_some() {
            return exact;
        }
        let found = ENDINGS.iter().map(|ending| format!("{base}{ending}"));
        if let Some(path) = found.into_iter().find(|path| self.tree.files.contains_key(path)) {
            return Some(Module::File(path));
        }
        if self.is_other(base) {
            return Some(Module::Asset(base.to_owned()));
        }
        let json = format!("{base}.json");
        if self.is_other(&json) {
            return Some(Module::Asset(json));
        }
        self.directory_entry(base)
    }

    fn directory_entry(&self, base: &str) -> Option<Module> {
        let prefix = if base.is_empty() { String::new() } else { format!("{base}/") };
        let index = ENDINGS.iter().map(|ending| format!("{prefix}index{ending}"));
        if let Some(path) = index.into_iter().find(|path| self.tree.files.contains_key(path)) {
            return Some(Module::File(path));
        }
        let manifest = self.configuration.manifest_of(base)?;
        manifest
            .entries("")
            .into_iter()
            // An entry that is the directory itself would look here again.
            .filter(|entry| entry != base)
            .find_map(|entry| {
                let exact = self.tree.files.contains_key(&entry).then(|| entry.clone());
                let with_ending = ENDINGS.iter().map(|ending| format!("{entry}{ending}"));
                exact
                    .or_else(|| with_ending.into_iter().find(|path| self.tree.files.contains_key(path)))
                    .map(Module::File)
            })
    }

    fn is_other(&self, path: &str) -> bool {
        self.tree.other_paths.contains(path) || self.tree.manifests.contains_key(path)
    }
}

/// The path without its ending, and without `index`.
pub(super) fn module_name(path: &str) -> String {
    let stem =
        ENDINGS.iter().filter_map(|ending| path.strip_suffix(ending)).min_by_key(|stem| stem.len()).unwrap_or(path);
    stem.strip_suffix("/index").unwrap_or(stem).to_owned()
}
