//! The code graph: what each file defines, what it takes from where, and who is touched by a change.

mod extract;
mod facts;
mod graph;
mod language;
mod query;
mod report;
mod resolve;
mod store;
mod walk;

pub use extract::{Error as ExtractError, extract};
pub use facts::{Definition, DefinitionKind, Export, FileFacts, Reference, ReferenceKind};
pub use graph::Totals;
pub use language::{Language, is_test_path};
pub use query::{
    AffectedTests, CodeGraph, Cycle, CycleEdge, Dependent, Found, GraphNode, Impact, Import, Imports, UnresolvedUse,
    Use,
};
pub use report::{Count, GraphReport, LanguageReport, ReasonCount};
pub use resolve::{Outcome, Reason, Resolution, Resolver, SourceFile, SourceTree, Target};
pub use store::{BuildReport, BuildTarget, Error as BuildError, build, forget};
pub use walk::{Error as WalkError, Progress, ProgressFn, Skipped};
