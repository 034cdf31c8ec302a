//! The list of processes is the directory of services and the table of the design.

use std::collections::BTreeSet;

use cogo_tidy::{Kind, members, read, root};
use serde::Deserialize;

use crate::it::hold;

/// Process, port, level, and the route that it claims (`-`: none), as the design has them, with one departure:
/// there the `rag-dispatcher` is only woken by changed rows, here indexing is also asked for by a message.
const DESIGN: [(&str, u16, u8, &str); 14] = [
    ("gateway-api", 3000, 1, "-"),
    ("orchestrator-brain", 3001, 1, "orchestrator/decide"),
    ("executor-dispatcher", 3012, 2, "executor/dispatch"),
    ("gateway-chat", 3002, 2, "gateway/chat"),
    ("rag-dispatcher", 3010, 2, "rag/index"),
    ("rag-embed", 3011, 2, "rag/embed"),
    ("kg-builder", 3014, 2, "kg/build"),
    ("sandbox-manager", 3013, 2, "sandbox/run"),
    ("research-scout", 3015, 2, "research/answer"),
    ("codegen-service", 3016, 2, "codegen/generate"),
    ("build-test-worker", 3017, 2, "code/build-test"),
    ("bus-reclaimer", 3018, 2, "-"),
    ("bus-retention", 3019, 2, "-"),
    ("metrics-server", 3100, 2, "-"),
];

/// Only what the rules are about; the file may say more.
#[derive(Debug, Deserialize)]
struct Listing {
    process: Vec<Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    name: String,
    binary: String,
    port: u16,
    level: u8,
    domain: String,
    restart: String,
    route: Option<Route>,
}

#[derive(Debug, Deserialize)]
struct Route {
    service: String,
    role: String,
    shard: u16,
}

fn processes() -> Vec<Process> {
    let text = read(&root().join("deploy/processes.toml"));
    toml::from_str::<Listing>(&text).expect("deploy/processes.toml has the agreed shape").process
}

#[test]
fn listed_processes_are_the_services() {
    let listed: BTreeSet<String> = processes().into_iter().map(|process| process.name).collect();
    let services = members().into_iter().filter(|member| member.kind == Kind::Service);
    let services: BTreeSet<String> = services.map(|member| member.directory).collect();
    let breaches: Vec<String> = listed.symmetric_difference(&services).cloned().collect();
    hold("deploy/processes.toml and services/ differ", &breaches);
}

#[test]
fn processes_are_as_the_design_has_them() {
    let mut breaches = Vec::new();
    for process in processes() {
        let name = &process.name;
        let Some((_, port, level, route)) = DESIGN.iter().find(|(designed, ..)| designed == name) else {
            breaches.push(format!("{name} is not in the design"));
            continue;
        };
        let claims = process.route.as_ref().map(|route| format!("{}/{}", route.service, route.role));
        let claims = claims.as_deref().unwrap_or("-");
        if (process.port, process.level, claims) != (*port, *level, *route) {
            let (own_port, own_level) = (process.port, process.level);
            breaches
                .push(format!("{name}: {own_port}, level {own_level}, {claims}; not {port}, level {level}, {route}"));
        }
        let domain = name.split('-').next().unwrap();
        if process.binary != format!("cogo-{name}") || process.domain != domain {
            breaches.push(format!("{name}: binary {}, domain {}", process.binary, process.domain));
        }
        if !matches!(process.restart.as_str(), "permanent" | "transient" | "temporary") {
            breaches.push(format!("{name}: restart {}", process.restart));
        }
    }
    hold("a process differs from the design", &breaches);
}

#[test]
fn names_ports_and_routes_are_given_once() {
    let mut seen = BTreeSet::new();
    let mut breaches = Vec::new();
    for process in processes() {
        let route = process.route.map(|route| format!("{}/{}/{}", route.service, route.role, route.shard));
        let given = [Some(process.name), Some(process.port.to_string()), route];
        for value in given.into_iter().flatten() {
            if !seen.insert(value.clone()) {
                breaches.push(value);
            }
        }
    }
    hold("deploy/processes.toml gives something twice", &breaches);
}
