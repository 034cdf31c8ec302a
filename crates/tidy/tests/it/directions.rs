//! A crate uses only what stands below it.

use cogo_tidy::{Kind, Member, members};

use crate::it::hold;

const SERVICES_FLOOR: u8 = 5;

/// The floors of the design, from the ground up.
fn floor_of(member: &Member) -> Option<u8> {
    if member.kind == Kind::Service {
        return Some(SERVICES_FLOOR);
    }
    Some(match member.directory.as_str() {
        "contracts" => 0,
        "db" | "telemetry" | "pg-local" => 1,
        "bus-core" | "registry-core" => 2,
        "model-client" | "rag-core" | "kg-core" | "supervision" | "bus-check" => 3,
        "service-runtime" => 4,
        "cogo-cli" => SERVICES_FLOOR,
        "e2e" | "tidy" | "test-support" => 6,
        _ => return None,
    })
}

/// Uses on one floor, or below, that the drawing alone does not settle.
fn exception(user: &str, used: &str) -> Option<bool> {
    match (user, used) {
        // Vectors come from a provider; everything else of retrieval does without one.
        ("rag-core", "model-client") => Some(true),
        // The frame of every process must not draw in what only some processes need.
        ("service-runtime", "rag-core" | "kg-core" | "model-client" | "pg-local") => Some(false),
        _ => None,
    }
}

/// Every workspace package that the member's production code is built with.
fn used_packages(member: &Member) -> Vec<String> {
    let manifest = &member.manifest;
    let mut tables = vec![manifest.get("dependencies"), manifest.get("build-dependencies")];
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    for target in targets.into_iter().flat_map(toml::Table::values) {
        tables.extend([target.get("dependencies"), target.get("build-dependencies")]);
    }
    let names = tables.into_iter().flatten().filter_map(toml::Value::as_table).flat_map(toml::Table::keys);
    names.filter(|name| name.starts_with("cogo-")).cloned().collect()
}

#[test]
fn every_member_stands_on_a_floor() {
    let homeless: Vec<String> =
        members().iter().filter(|member| floor_of(member).is_none()).map(Member::place).collect();
    hold("a member has no floor in the design", &homeless);
}

#[test]
fn crates_use_only_what_stands_below_them() {
    let members = members();
    let mut breaches = Vec::new();
    for user in &members {
        for package in used_packages(user) {
            let Some(used) = members.iter().find(|member| member.package() == package) else {
                breaches.push(format!("{} uses {package}, which is not a member", user.place()));
                continue;
            };
            let is_below = floor_of(used) < floor_of(user);
            if !exception(&user.directory, &used.directory).unwrap_or(is_below) {
                breaches.push(format!("{} must not use {}", user.place(), used.place()));
            }
        }
    }
    hold("a crate uses what does not stand below it", &breaches);
}

#[test]
fn no_one_uses_a_service_except_the_end_to_end_tests() {
    let members = members();
    let is_service = |package: &String| {
        members.iter().any(|member| member.kind == Kind::Service && member.package() == package.as_str())
    };
    let mut breaches = Vec::new();
    for user in members.iter().filter(|member| member.directory != "e2e") {
        for package in used_packages(user).iter().filter(|package| is_service(package)) {
            breaches.push(format!("{} uses the service {package}", user.place()));
        }
    }
    hold("a service is used as a library", &breaches);
}
