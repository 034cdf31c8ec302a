//! Schemas of requests and replies: registered in versions that stay compatible, and held against what is sent.

mod cache;
mod catalog;
mod comparison;
mod comparison_alternatives;
mod comparison_fields;
mod comparison_parts;
mod comparison_types;
mod compiled;
mod dialect;
mod document;
mod finding;
mod follower;
mod refusal;
mod store;

pub use cache::SchemaRegistry;
pub use catalog::{NewSchema, RegisteredSchema, SchemaCatalog, SchemaError, SchemaVersion, SubjectSummary};
pub use document::{NotASchema, SchemaDocument};
pub use finding::{Finding, Incompatible, Towards};
pub use follower::SchemaFollower;
pub use refusal::{NotChecked, SchemaRefusal, Violation};

#[cfg(test)]
mod tests;
