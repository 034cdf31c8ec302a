//! Each table is written by one crate only.

use cogo_tidy::{Migration, RustSource, members, migrations_directory, read, root, without_test_items, written_tables};

use crate::it::hold;

/// The one member that may write a table, by the directory of the member.
fn owner_of(table: &str) -> Option<&'static str> {
    match table.split_once('.')? {
        ("bus", _) | ("public", "agent_messages" | "bus_events") => Some("bus-core"),
        ("registry", _) => Some("registry-core"),
        ("public", "vector_documents" | "code_vectors" | "embedding_cache") => Some("rag-core"),
        ("public", name) if name.starts_with("rag_") => Some("rag-core"),
        ("public", name) if name.starts_with("kg_") => Some("kg-core"),
        ("public", name) if name.starts_with("orch_") => Some("orchestrator-brain"),
        _ => None,
    }
}

#[test]
fn every_table_has_an_owner() {
    let mut breaches = Vec::new();
    for path in std::fs::read_dir(migrations_directory()).unwrap().map(|entry| entry.unwrap().path()) {
        for table in Migration::parse(&read(&path)).tables {
            if owner_of(&table).is_none() {
                breaches.push(format!("{table} in {}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    hold("nobody owns a table", &breaches);
}

#[test]
fn tables_are_written_by_their_owner_only() {
    let mut breaches = Vec::new();
    for member in members().into_iter().filter(|member| !member.is_dev_only()) {
        for file in member.production_files() {
            let source = RustSource::parse(&without_test_items(&read(&file)));
            for literal in &source.literals {
                for table in written_tables(&literal.text) {
                    // No owner: prose that reads like a statement.
                    if let Some(owner) = owner_of(&table)
                        && owner != member.directory
                    {
                        let place = file.strip_prefix(root()).unwrap().display();
                        breaches.push(format!("{place}:{}: {table} belongs to {owner}", literal.line));
                    }
                }
            }
        }
    }
    hold("a table is written by another crate than its owner", &breaches);
}

#[test]
fn owners_are_told_by_schema_and_name() {
    assert_eq!(owner_of("public.agent_messages"), Some("bus-core"));
    assert_eq!(owner_of("bus.cursors"), Some("bus-core"));
    assert_eq!(owner_of("registry.agents"), Some("registry-core"));
    assert_eq!(owner_of("public.kg_edges"), Some("kg-core"));
    assert_eq!(owner_of("public.orch_arms"), Some("orchestrator-brain"));
    assert_eq!(owner_of("public.the"), None);
}
