//! What `tsconfig.json` and `package.json` say about where specifiers lead.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::resolve::{SourceTree, ancestors, directory, join};

/// Modules that come with the runtime.
pub(super) const NODE_BUILTINS: [&str; 40] = [
    "assert",
    "async_hooks",
    "buffer",
    "child_process",
    "cluster",
    "console",
    "constants",
    "crypto",
    "dgram",
    "diagnostics_channel",
    "dns",
    "domain",
    "events",
    "fs",
    "http",
    "http2",
    "https",
    "inspector",
    "module",
    "net",
    "os",
    "path",
    "perf_hooks",
    "process",
    "punycode",
    "querystring",
    "readline",
    "repl",
    "stream",
    "string_decoder",
    "sys",
    "timers",
    "tls",
    "tty",
    "url",
    "util",
    "v8",
    "vm",
    "worker_threads",
    "zlib",
];

/// Path aliases of one directory's `tsconfig*.json`.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// Pattern, and the directories or files that it stands for, from the root.
    pub(super) paths: Vec<(String, Vec<String>)>,
    /// Directory in which plain specifiers are looked up as well.
    pub(super) base: Option<String>,
}

/// A `package.json`.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) directory: String,
    pub(super) json: Value,
}

/// All configuration of a tree.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    aliases: BTreeMap<String, Aliases>,
    manifests: BTreeMap<String, Manifest>,
    /// Directory of each package of the tree by its name.
    by_name: HashMap<String, String>,
}

impl Configuration {
    pub(super) fn new(tree: &SourceTree) -> Self {
        let mut configuration = Self::default();
        for (path, text) in &tree.manifests {
            let name = path.rsplit('/').next().unwrap_or("");
            let home = directory(path).to_owned();
            if name == "package.json" {
                let Ok(json) = serde_json::from_str::<Value>(text) else { continue };
                if let Some(package) = json.get("name").and_then(Value::as_str) {
                    configuration.by_name.entry(package.to_owned()).or_insert_with(|| home.clone());
                }
                configuration.manifests.insert(home.clone(), Manifest { directory: home, json });
            } else if is_typescript_config(name) {
                let mut seen = HashSet::new();
                let aliases = configuration.aliases.entry(home).or_default();
                read_aliases(tree, path, aliases, &mut seen);
            }
        }
        configuration
    }

    /// Aliases in force for a file, nearest directory first.
    pub(super) fn aliases_for<'c>(&'c self, path: &'c str) -> impl Iterator<Item = &'c Aliases> {
        ancestors(path).filter_map(|above| self.aliases.get(above))
    }

    /// The package of the tree that a specifier names, and what stands after the name.
    pub(super) fn workspace_package<'s>(&self, specifier: &'s str) -> Option<(&Manifest, &'s str)> {
        let name = package_name(specifier);
        let manifest = self.manifests.get(self.by_name.get(name)?)?;
        let rest = specifier.get(name.len()..).unwrap_or("").trim_start_matches('/');
        Some((manifest, rest))
    }

    /// The `package.json` in force for a file.
    pub(super) fn manifest_for(&self, path: &str) -> Option<&Manifest> {
        ancestors(path).find_map(|above| self.manifests.get(above))
    }

    /// The `package.json` of exactly this directory.
    pub(super) fn manifest_of(&self, path: &str) -> Option<&Manifest> {
        self.manifests.get(path)
    }

    /// Whether any `package.json` above a file lists the package.
    pub(super) fn declares(&self, path: &str, package: &str) -> bool {
        let types = format!("@types/{}", package.trim_start_matches('@').replace('/', "__"));
        ancestors(path).filter_map(|above| self.manifests.get(above)).any(|manifest| {
            ["dependencies", "devDependencies", "peerDependencies", "optionalDependencies"]
                .iter()
                .filter_map(|section| manifest.json.get(section))
                .any(|entries| entries.get(package).or_else(|| entries.get(&types)).is_some())
        })
    }
}

impl Manifest {
    /// Files that may stand behind `package/rest`, best first, from the root of the tree.
    pub(super) fn entries(&self, rest: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(exports) = self.json.get("exports") {
            export_targets(exports, rest, &mut found);
        }
        if rest.is_empty() {
            for key in ["source", "types", "module", "main"] {
                found.extend(self.json.get(key).and_then(Value::as_str).map(str::to_owned));
            }
            found.extend(["src/index", "index", "src/main", "lib/index"].map(str::to_owned));
        } else {
            found.extend([rest.to_owned(), format!("src/{rest}"), format!("lib/{rest}")]);
        }
        found.iter().filter_map(|path| join(&self.directory, path)).collect()
    }

    /// What an `imports` entry (`#name`) stands for, from the root of the tree.
    pub(super) fn private_imports(&self, specifier: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (pattern, value) in self.json.get("imports").and_then(Value::as_object).into_iter().flatten() {
            if let Some(star) = match_pattern(pattern, specifier) {
                leaves(value, &mut |path| found.push(path.replace('*', star)));
            }
        }
        found.iter().filter_map(|path| join(&self.directory, path)).collect()
    }
}

/// The package part of a bare specifier: `@scope/name` or `name`.
pub(super) fn package_name(specifier: &str) -> &str {
    let slashes = usize::from(specifier.starts_with('@'));
    let end = specifier.match_indices('/').nth(slashes).map_or(specifier.len(), |(at, _)| at);
    specifier.get(..end).unwrap_or(specifier)
}

/// What `*` stands for if the pattern fits; the empty text for a pattern without `*`.
pub(super) fn match_pattern<'s>(pattern: &str, specifier: &'s str) -> Option<&'s str> {
    match pattern.split_once('*') {
        None => (pattern == specifier).then_some(""),
        Some((before, after)) => specifier.strip_prefix(before)?.strip_suffix(after),
    }
}

fn is_typescript_config(name: &str) -> bool {
    let is_config = name.starts_with("tsconfig") || name.starts_with("jsconfig");
    is_config && name.ends_with(".json")
}

fn read_aliases(tree: &SourceTree, path: &str, aliases: &mut Aliases, seen: &mut HashSet<String>) {
    if !seen.insert(path.to_owned()) {
        return;
    }
    let Some(text) = tree.manifests.get(path) else { return };
    let Ok(json) = serde_json::from_str::<Value>(&without_comments(text)) else { return };
    let home = directory(path);
    let options = json.get("compilerOptions");
    let base =
        options.and_then(|options| options.get("baseUrl")).and_then(Value::as_str).and_then(|base| join(home, base));
    let paths = options.and_then(|options| options.get("paths")).and_then(Value::as_object);
    let from = base.as_deref().unwrap_or(home);
    for (pattern, targets) in paths.into_iter().flatten() {
        let targets: Vec<String> =
            targets.as_array().into_iter().flatten().filter_map(|target| join(from, target.as_str()?)).collect();
        if !aliases.paths.iter().any(|(known, _)| known == pattern) {
            aliases.paths.push((pattern.clone(), targets));
        }
    }
    aliases.base = aliases.base.take().or(base);
    let extended = match json.get("extends") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    for parent in extended.iter().filter(|parent| parent.starts_with('.')) {
        let Some(parent) = join(home, parent) else { continue };
        let with_ending = format!("{parent}.json");
        let parent = if tree.manifests.contains_key(&parent) { parent } else { with_ending };
        read_aliases(tree, &parent, aliases, seen);
    }
}

fn export_targets(exports: &Value, rest: &str, found: &mut Vec<String>) {
    let wanted = if rest.is_empty() { ".".to_owned() } else { format!("./{rest}") };
    let by_path = exports.as_object().filter(|entries| entries.keys().any(|key| key.starts_with('.')));
    let Some(entries) = by_path else {
        if rest.is_empty() {
            leaves(exports, &mut |path| found.push(path.to_owned()));
        }
        return;
    };
    for (pattern, value) in entries {
        if let Some(star) = match_pattern(pattern, &wanted) {
            leaves(value, &mut |path| found.push(path.replace('*', star)));
        }
    }
}

/// All texts at the ends of nested conditions.
fn leaves(value: &Value, take: &mut dyn FnMut(&str)) {
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        match value {
            Value::String(text) => take(text),
            Value::Array(items) => waiting.extend(items.iter().rev()),
            Value::Object(entries) => waiting.extend(entries.values().rev()),
            _ => {}
        }
    }
}

/// JSON as TypeScript reads it: without comments and without commas before a closing bracket.
fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut letters = text.trim_start_matches('\u{feff}').chars().peekable();
    let mut in_string = false;
    while let Some(letter) = letters.next() {
        match (in_string, letter) {
            (true, '\\') => {
                clean.push(letter);
                clean.extend(letters.next());
            }
            (_, '"') => {
                in_string = !in_string;
                clean.push(letter);
            }
            (false, '/') if letters.peek() == Some(&'/') => {
                while letters.peek().is_some_and(|next| *next != '\n') {
                    letters.next();
                }
            }
            (false, '/') if letters.peek() == Some(&'*') => {
                letters.next();
                let mut before = ' ';
                for next in letters.by_ref() {
                    if before == '*' && next == '/' {
                        break;
                    }
                    before = next;
                }
            }
            (false, ']' | '}') => {
                let end = clean.trim_end().len();
                if clean.get(..end).is_some_and(|before| before.ends_with(',')) {
                    clean.truncate(end - 1);
                }
                clean.push(letter);
            }
            _ => clean.push(letter),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_removed_outside_strings() {
        let text = "{ // note\n \"a\": \"http://x/*y*/\", /* b */ \"c\": [1, 2, ],\n}";
        let json: Value = serde_json::from_str(&without_comments(text)).unwrap();
        assert_eq!(json, serde_json::json!({ "a": "http://x/*y*/", "c": [1, 2] }));
    }

    #[test]
    fn package_names_keep_their_scope() {
        for (specifier, expected) in
            [("react", "react"), ("lodash/fp", "lodash"), ("@a/b", "@a/b"), ("@a/b/c/d", "@a/b")]
        {
            assert_eq!(package_name(specifier), expected);
        }
    }

    #[test]
    fn conditions_and_patterns_of_exports_are_read() {
        let json = serde_json::json!({ "exports": {
            ".": { "import": { "types": "./dist/a.d.ts" }, "default": "./src/a.ts" },
            "./x/*": "./src/x/*.ts",
        }});
        let manifest = Manifest { directory: "p".to_owned(), json };
        assert!(manifest.entries("").contains(&"p/src/a.ts".to_owned()));
        assert_eq!(manifest.entries("x/y").first().map(String::as_str), Some("p/src/x/y.ts"));
    }
}
