//! Python imports: relative, absolute from every source root, submodules, stars, re-exports in `__init__`.

use std::collections::{BTreeSet, HashSet};

use crate::{
    facts::Reference,
    language::Language,
    resolve::{Names, Outcome, Reason, Resolution, SourceTree, Target, ancestors, directory, join},
};

/// Top-level modules of the standard library that programs import; the rest counts as undeclared.
const STANDARD: &str = " __future__ _thread abc argparse array ast asyncio atexit base64 bdb binascii bisect \
builtins bz2 calendar cmath cmd code codecs collections colorsys compileall concurrent configparser contextlib \
contextvars copy copyreg cProfile csv ctypes curses dataclasses datetime dbm decimal difflib dis distutils doctest \
email encodings ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc \
getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http imaplib imp importlib inspect io \
ipaddress itertools json keyword linecache locale logging lzma mailbox marshal math mimetypes mmap msvcrt \
multiprocessing netrc numbers operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib \
posix posixpath pprint profile pstats pty pwd py_compile pydoc queue quopri random re readline reprlib resource \
runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat \
statistics string stringprep struct subprocess symtable sys sysconfig syslog tarfile tempfile termios test textwrap \
threading time timeit tkinter token tokenize tomllib trace traceback tracemalloc tty turtle types typing unicodedata \
unittest urllib uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xml xmlrpc zipapp zipfile \
zipimport zlib zoneinfo ";

/// Longest chain of re-exports that is followed.
const DEPTH_LIMIT: u8 = 16;

pub(super) struct PythonResolver<'t> {
    tree: &'t SourceTree,
    names: Names<'t>,
    /// Directories that hold Python files, at any depth.
    directories: HashSet<&'t str>,
    /// Directories from which absolute imports may start.
    roots: BTreeSet<String>,
    /// Names in dependency lists, with `_` for `-`.
    declared: HashSet<String>,
}

enum Module {
    File(String),
    Namespace(String),
}

impl<'t> PythonResolver<'t> {
    pub(super) fn new(tree: &'t SourceTree) -> Self {
        let mut directories = HashSet::new();
        let mut roots = BTreeSet::from([String::new()]);
        for (path, _) in tree.files.iter().filter(|(_, file)| file.language == Language::Python) {
            directories.extend(ancestors(path));
            roots.insert(package_root(tree, path).to_owned());
        }
        let mut declared = HashSet::new();
        for (path, text) in &tree.manifests {
            let name = path.rsplit('/').next().unwrap_or("");
            let is_python = matches!(name, "pyproject.toml" | "setup.cfg")
                || (name.starts_with("requirements") && name.ends_with(".txt"));
            if is_python {
                roots.insert(directory(path).to_owned());
                declared.extend(requirement_names(text));
            }
        }
        for folder in ["src", "lib", "python"] {
            let nested: Vec<_> = roots.iter().filter_map(|root| join(root, folder)).collect();
            roots.extend(nested.into_iter().filter(|path| directories.contains(path.as_str())));
        }
        let names = Names::new(tree, &[Language::Python]);
        Self { tree, names, directories, roots, declared }
    }

    pub(super) fn module_name(&self, path: &str) -> String {
        let root = package_root(self.tree, path);
        let inside = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        let stem = inside.rsplit_once('.').map_or(inside, |(stem, _)| stem);
        stem.strip_suffix("/__init__").unwrap_or(stem).replace('/', ".")
    }

    pub(super) fn resolve(&self, path: &str, reference: &Reference) -> Outcome {
        match self.module(path, &reference.module) {
            Ok((module, resolution)) => self.in_module(module, reference.name.as_deref(), resolution),
            Err(outcome) => outcome,
        }
    }

    fn in_module(&self, module: Module, name: Option<&str>, found: Resolution) -> Outcome {
        let mut via = Vec::new();
        let (target, resolution) = match (module, name) {
            (Module::File(path), None) => (Target::File(path), found),
            (Module::File(path), Some("*")) => (Target::File(path), Resolution::Star),
            (Module::Namespace(path), None | Some("*")) => (Target::Package(path), found),
            (Module::Namespace(path), Some(name)) => match self.submodule(&path, name) {
                Some(Module::File(file)) => (Target::File(file), found),
                Some(Module::Namespace(inner)) => (Target::Package(inner), found),
                None => return Outcome::Unresolved(Reason::NoSuchModule),
            },
            (Module::File(path), Some(name)) => match self.member(&path, name, &mut via, 0) {
                Some((target, Resolution::Exact)) if via.is_empty() => (target, found),
                Some((target, resolution)) => (target, resolution),
                None => (Target::File(path), Resolution::MemberUnknown),
            },
        };
        via.reverse();
        via.dedup();
        Outcome::Internal { target, resolution, via }
    }

    /// A name in a module: definition, binding, submodule, then what stars bring.
    fn member(&self, path: &str, name: &str, via: &mut Vec<String>, depth: u8) -> Option<(Target, Resolution)> {
        if depth > DEPTH_LIMIT {
            return None;
        }
        if let Some(index) = self.names.definition(path, name) {
            let target = Target::Definition { path: path.to_owned(), index };
            return Some((target, Resolution::Exact));
        }
        for bound in self.names.bindings(path, name) {
            if let Err(Outcome::External { .. }) = self.module(path, &bound.module) {
                // Passed on from outside: what is known of the tree ends at this file.
                return Some((Target::File(path.to_owned()), Resolution::Reexport));
            }
            if let Some((target, _)) = self.follow(path, bound, bound.name.as_deref(), via, depth) {
                if target_path(&target) != Some(path) {
                    via.push(path.to_owned());
                }
                return Some((target, Resolution::Reexport));
            }
        }
        if is_package_file(path)
            && let Some(submodule) = self.submodule(directory(path), name)
        {
            let target = match submodule {
                Module::File(file) => Target::File(file),
                Module::Namespace(inner) => Target::Package(inner),
            };
            return Some((target, Resolution::Exact));
        }
        let stars = self.names.facts(path).map_or(&[][..], |facts| &facts.references);
        for star in stars.iter().filter(|star| star.name.as_deref() == Some("*")) {
            if let Some((target, _)) = self.follow(path, star, Some(name), via, depth) {
                via.push(path.to_owned());
                return Some((target, Resolution::Star));
            }
        }
        None
    }

    fn follow(
        &self,
        path: &str,
        reference: &Reference,
        name: Option<&str>,
        via: &mut Vec<String>,
        depth: u8,
    ) -> Option<(Target, Resolution)> {
        let (module, _) = self.module(path, &reference.module).ok()?;
        match (module, name) {
            (Module::File(file), None) => Some((Target::File(file), Resolution::Exact)),
            (Module::File(file), Some(_)) if file == path && reference.name.as_deref() == Some("*") => None,
            (Module::File(file), Some(name)) => self.member(&file, name, via, depth + 1),
            (Module::Namespace(directory), None) => Some((Target::Package(directory), Resolution::Exact)),
            (Module::Namespace(directory), Some(name)) => match self.submodule(&directory, name)? {
                Module::File(file) => Some((Target::File(file), Resolution::Exact)),
                Module::Namespace(inner) => Some((Target::Package(inner), Resolution::Exact)),
            },
        }
    }

    fn module(&self, from: &str, module: &str) -> Result<(Module, Resolution), Outcome> {
        let dots = module.chars().take_while(|letter| *letter == '.').count();
        if dots == 0 {
            return self.absolute(from, module);
        }
        let mut base = Some(directory(from));
        for _ in 1..dots {
            base = base.filter(|path| !path.is_empty()).map(directory);
        }
        let base = base.ok_or(Outcome::Unresolved(Reason::OutsideTree))?;
        let rest = module.get(dots..).unwrap_or("");
        let found = if rest.is_empty() { self.package(base) } else { self.descend(base, rest) };
        let found = found.ok_or(Outcome::Unresolved(Reason::NoSuchModule))?;
        Ok((found, Resolution::Exact))
    }

    fn absolute(&self, from: &str, module: &str) -> Result<(Module, Resolution), Outcome> {
        let top = module.split('.').next().unwrap_or(module);
        let own_root = package_root(self.tree, from);
        let own_directory = directory(from);
        let is_standard = STANDARD.contains(&format!(" {top} "));
        let mut top_is_here = false;
        let nearest = ancestors(from).filter(|above| self.roots.contains(*above));
        let others = self.roots.iter().map(String::as_str);
        // A file in no package may be run as a script: its own directory comes first on the path.
        for root in std::iter::once(own_root).chain(nearest).chain(others) {
            let own = root == own_directory && root != own_root;
            match self.submodule(root, top) {
                // A directory without __init__ hides neither the standard library nor a dependency.
                Some(Module::Namespace(_)) if is_standard || self.declared.contains(top) => continue,
                // `tests` of another project is not what this import means.
                Some(Module::Namespace(_)) if !self.descends(root, module) => continue,
                None => continue,
                Some(_) => {}
            }
            top_is_here = true;
            if let Some(found) = self.descend(root, module) {
                let resolution = if own { Resolution::Heuristic } else { Resolution::Exact };
                return Ok((found, resolution));
            }
        }
        if top_is_here && !is_standard {
            return Err(Outcome::Unresolved(Reason::NoSuchModule));
        }
        let declared = is_standard || self.declared.contains(&top.to_lowercase());
        Err(Outcome::External { ecosystem: "pypi", package: top.to_owned(), declared })
    }

    fn descends(&self, root: &str, module: &str) -> bool {
        self.descend(root, module).is_some()
    }

    fn descend(&self, base: &str, dotted: &str) -> Option<Module> {
        let mut current = base.to_owned();
        let mut found = None;
        let mut parts = dotted.split('.').peekable();
        while let Some(part) = parts.next() {
            match self.submodule(&current, part)? {
                Module::Namespace(inner) => {
                    current.clone_from(&inner);
                    found = Some(Module::Namespace(inner));
                }
                Module::File(path) => {
                    if parts.peek().is_some() && !is_package_file(&path) {
                        return None;
                    }
                    current = directory(&path).to_owned();
                    found = Some(Module::File(path));
                }
            }
        }
        found
    }

    fn submodule(&self, base: &str, name: &str) -> Option<Module> {
        let stem = join(base, name)?;
        let package = format!("{stem}/__init__.py");
        if self.tree.files.contains_key(&package) {
            return Some(Module::File(package));
        }
        let file = ["py", "pyi"]
            .into_iter()
            .map(|ending| format!("{stem}.{ending}"))
            .chain([format!("{stem}/__init__.pyi")])
            .find(|path| self.tree.files.contains_key(path));
        match file {
            Some(path) => Some(Module::File(path)),
            None => self.directories.contains(stem.as_str()).then_some(Module::Namespace(stem)),
        }
    }

    fn package(&self, path: &str) -> Option<Module> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        ["__init__.py", "__init__.pyi"]
            .into_iter()
            .map(|name| format!("{prefix}{name}"))
            .find(|file| self.tree.files.contains_key(file))
            .map(Module::File)
            .or_else(|| self.directories.contains(path).then(|| Module::Namespace(path.to_owned())))
    }
}

fn target_path(target: &Target) -> Option<&str> {
    match target {
        Target::File(path) | Target::Definition { path, .. } => Some(path),
        Target::Package(_) | Target::Asset(_) => None,
    }
}

fn is_package_file(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("__init__.py" | "__init__.pyi"))
}

/// The directory above the outermost package that holds the file.
fn package_root<'p>(tree: &SourceTree, path: &'p str) -> &'p str {
    let mut current = directory(path);
    loop {
        let is_package =
            ["py", "pyi"].iter().any(|ending| tree.files.contains_key(&format!("{current}/__init__.{ending}")));
        if current.is_empty() || !is_package {
            return current;
        }
        current = directory(current);
    }
}

/// Names at the start of quoted or plain requirement lines; too many do no harm, they only mark as declared.
fn requirement_names(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().flat_map(|line| line.split(['[', ',', '"', '\''])).filter_map(|part| {
        let name: String = part
            .trim()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.'))
            .collect();
        (!name.is_empty()).then(|| name.to_lowercase().replace(['-', '.'], "_"))
    })
}
