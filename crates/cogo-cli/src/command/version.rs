//! `cogo version`: which build this is.

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure};

/// Show the version of this build and of the schema that it needs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo version\n  cogo version --json")]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let version = env!("CARGO_PKG_VERSION");
        let schema = cogo_db::MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
        let value = json!({"version": version, "schema": schema});
        context.output.either(&value, || format!("cogo {version}\nschema {schema}"))
    }
}
