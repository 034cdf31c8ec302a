//! Versions and lints are set once, in the root.

use cogo_tidy::{Kind, members};

use crate::it::hold;

const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Whether a table of a manifest says `workspace = true`.
fn is_inherited(value: &toml::Value) -> bool {
    value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
}

/// The dependencies of a manifest, those of single platforms included, that are not taken from the root.
fn own_versions(manifest: &toml::Table) -> Vec<String> {
    let mut own = Vec::new();
    for name in DEPENDENCY_TABLES {
        let dependencies = manifest.get(name).and_then(toml::Value::as_table);
        for (dependency, value) in dependencies.into_iter().flatten() {
            let keys = value.as_table().into_iter().flat_map(toml::Table::keys);
            let only_refines =
                keys.into_iter().all(|key| matches!(key.as_str(), "workspace" | "features" | "optional"));
            if !is_inherited(value) || !only_refines {
                own.push(dependency.clone());
            }
        }
    }
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    for target in targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table) {
        own.extend(own_versions(target));
    }
    own
}

#[test]
fn versions_stand_only_in_the_root() {
    let mut breaches = Vec::new();
    for member in members() {
        for dependency in own_versions(&member.manifest) {
            breaches.push(format!("{}: {dependency} must be `{dependency}.workspace = true`", member.place()));
        }
        let version = member.manifest.get("package").and_then(|package| package.get("version"));
        if !version.is_some_and(is_inherited) {
            breaches.push(format!("{}: `version.workspace = true` is missing", member.place()));
        }
    }
    hold("a version stands outside the root manifest", &breaches);
}

#[test]
fn every_member_takes_the_lints_of_the_root() {
    let lax = members().into_iter().filter(|member| !member.manifest.get("lints").is_some_and(is_inherited));
    let breaches: Vec<String> = lax.map(|member| member.place()).collect();
    hold("`[lints] workspace = true` is missing", &breaches);
}

#[test]
fn packages_and_binaries_are_named_after_their_directories() {
    let mut breaches = Vec::new();
    for member in members() {
        let is_command_line = member.directory == "cogo-cli";
        let package = if is_command_line { "cogo-cli".to_owned() } else { format!("cogo-{}", member.directory) };
        if member.package() != package {
            breaches.push(format!("{}: the package is {}, not {package}", member.place(), member.package()));
        }
        if member.kind == Kind::Service && !member.directory.contains('-') {
            breaches.push(format!("{}: the name is not <domain>-<role>", member.place()));
        }
        let binaries = member.manifest.get("bin").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        let names: Vec<&str> =
            binaries.iter().filter_map(|binary| binary.get("name").and_then(toml::Value::as_str)).collect();
        let expected = if is_command_line { "cogo" } else { package.as_str() };
        let must_say_so = is_command_line;
        if names.iter().any(|name| *name != expected) || (must_say_so && names.is_empty()) {
            breaches.push(format!("{}: the binary is {names:?}, not {expected}", member.place()));
        }
    }
    hold("a name differs from its directory", &breaches);
}

#[test]
fn a_version_of_its_own_is_seen() {
    let check = |manifest: &str, expected: &[&str]| {
        assert_eq!(own_versions(&manifest.parse().unwrap()), expected, "{manifest}");
    };
    check("[dependencies]\na.workspace = true\nb = { workspace = true, features = [\"x\"] }", &[]);
    check("[dependencies]\na = \"1\"", &["a"]);
    check("[dev-dependencies]\na = { workspace = true, path = \"../a\" }", &["a"]);
    check("[target.'cfg(unix)'.dependencies]\na = { version = \"1\" }", &["a"]);
}
