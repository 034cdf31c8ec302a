//! `cogo schema`: what requests and replies look like.

use std::{fmt::Write as _, io::Read};

use clap::{Args, Subcommand};
use cogo_contracts::{Compatibility, SchemaSubject};
use cogo_registry_core::{
    Finding, NewSchema, SchemaCatalog, SchemaDocument, SchemaError, SchemaVersion, SubjectSummary,
};
use serde_json::{Value, json};

use crate::{
    context::Context,
    failure::{Failure, Kind, about_file},
    output::table,
};

/// Characters of a digest that people compare.
const SHORT_DIGEST: usize = 12;

/// Register, list, show and check the schemas of requests and replies.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Schemas {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Register the next version of a schema, if it is compatible with what is there.
    #[command(
        after_help = "From then on payloads that do not fit are refused where they are sent and become dead letters where they are claimed.\n\nExamples:\n  cogo schema register rag/embed @embed.schema.json --note \"first version\"\n  cogo schema register gateway/chat/reply @reply.schema.json --compatibility full\n  cogo schema register rag/embed @embed.schema.json --compatibility none --json"
    )]
    Register(Register),
    /// List what has a schema, with its newest version and its rule.
    #[command(visible_alias = "ls", after_help = "Examples:\n  cogo schema list\n  cogo schema list --json")]
    List,
    /// Show the newest version of a schema, another one, or all there are.
    #[command(
        after_help = "Examples:\n  cogo schema show rag/embed\n  cogo schema show gateway/chat/reply --version 2 --json\n  cogo schema show rag/embed --history"
    )]
    Show(Show),
    /// Tell whether a payload fits a schema, or whether a schema could be its next version. Changes nothing.
    #[command(
        after_help = "Examples:\n  cogo schema check rag/embed --data '{\"documents\":[]}'\n  cogo schema check rag/embed --data @request.json --version 1\n  cogo schema check rag/embed --schema @embed.schema.json --compatibility full --json"
    )]
    Check(Check),
}

#[derive(Debug, Args)]
struct Register {
    /// What it describes: service/role for payloads, service/role/reply for results.
    subject: SchemaSubject,
    /// The schema, JSON Schema 2020-12: JSON, @FILE, or - for standard input.
    #[arg(value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    schema: String,
    /// What the next version must keep; an existing rule is changed before the schema is judged. A new schema is backward
    /// if nothing is said.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    compatibility: Option<Compatibility>,
    /// What changed.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who registers it.
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "cogo")]
    author: String,
}

#[derive(Debug, Args)]
struct Show {
    /// What it describes: service/role for payloads, service/role/reply for results.
    subject: SchemaSubject,
    /// This version instead of the newest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    version: Option<i32>,
    /// List every version instead.
    #[arg(long, conflicts_with = "version")]
    history: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// What it describes: service/role for payloads, service/role/reply for results.
    subject: SchemaSubject,
    /// A payload or result to hold against the schema: JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true, required_unless_present = "schema")]
    data: Option<String>,
    /// Against this version instead of the newest.
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(i32).range(1..))]
    version: Option<i32>,
    /// A schema to judge as the next version: JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true, conflicts_with = "data")]
    schema: Option<String>,
    /// Judge by this rule instead of the registered one.
    #[arg(long, value_name = "RULE", requires = "schema", value_parser = rule)]
    compatibility: Option<Compatibility>,
}

/// Both spellings are read, as flags are usually written with hyphens.
fn rule(text: &str) -> Result<Compatibility, String> {
    text.replace('-', "_").parse().map_err(|invalid: cogo_contracts::Invalid| invalid.to_string())
}

impl Schemas {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let catalog = SchemaCatalog::new(context.bus().await?.pool().clone());
        match self.action {
            Action::Register(register) => register.run(&catalog, context).await,
            Action::List => list(&catalog, context).await,
            Action::Show(show) => show.run(&catalog, context).await,
            Action::Check(check) => check.run(&catalog, context).await,
        }
    }
}

impl Register {
    async fn run(self, catalog: &SchemaCatalog, context: &Context) -> Result<(), Failure> {
        let document = SchemaDocument::parse(read(&self.schema)?).map_err(SchemaError::from).map_err(refused)?;
        if let Some(rule) = self.compatibility {
            let known = catalog.subjects().await.map_err(refused)?;
            if known.iter().any(|it| it.subject == self.subject && it.compatibility != rule) {
                catalog.set_compatibility(&self.subject, rule, &self.author).await.map_err(refused)?;
            }
        }
        let new = NewSchema {
            subject: self.subject,
            document,
            author: self.author,
            note: self.note,
            compatibility: self.compatibility,
        };
        let registered = catalog.register(&new).await.map_err(refused)?;
        let subject = new.subject.to_string();
        let value = json!({
            "subject": subject, "version": registered.version, "digest": registered.digest, "added": registered.added});
        context.output.either(&value, || {
            let verb = if registered.added { "registered" } else { "is already" };
            format!("{subject} {verb} version {}", registered.version)
        })
    }
}

impl Show {
    async fn run(self, catalog: &SchemaCatalog, context: &Context) -> Result<(), Failure> {
        if self.history {
            let versions = catalog.versions(&self.subject).await.map_err(refused)?;
            if versions.is_empty() {
                return Err(absent(&self.subject, None));
            }
            return context.output.either(&versions, || {
                table([">version", "digest", "registered (UTC)", "author", "note"], versions.iter().map(row))
            });
        }
        let shown = version(catalog, &self.subject, self.version).await?;
        context.output.either(&shown, || serde_json::to_string_pretty(&shown.document).unwrap_or_default())
    }
}

impl Check {
    async fn run(self, catalog: &SchemaCatalog, context: &Context) -> Result<(), Failure> {
        if let Some(schema) = &self.schema {
            let document = SchemaDocument::parse(read(schema)?).map_err(SchemaError::from).map_err(refused)?;
            let findings = catalog.judge(&self.subject, &document, self.compatibility).await.map_err(refused)?;
            if !findings.is_empty() {
                return Err(incompatible(&self.subject, &findings));
            }
            let value = json!({"subject": self.subject.to_string(), "compatible": true});
            return context.output.either(&value, || "compatible".to_owned());
        }
        let body = read(&self.data.unwrap_or_default())?;
        let against = version(catalog, &self.subject, self.version).await?;
        let document = SchemaDocument::parse(against.document).map_err(SchemaError::from).map_err(refused)?;
        if let Err(refusal) = document.check(&self.subject, against.version, &body) {
            return Err(Failure::failed(refusal.to_string()));
        }
        let value = json!({"subject": against.subject, "version": against.version, "fits": true});
        context.output.either(&value, || format!("fits {} version {}", against.subject, against.version))
    }
}

async fn list(catalog: &SchemaCatalog, context: &Context) -> Result<(), Failure> {
    let subjects = catalog.subjects().await.map_err(refused)?;
    if subjects.is_empty() && !context.output.is_json() {
        context.output.note("no schemas");
        return Ok(());
    }
    context.output.either(&subjects, || {
        let row = |it: &SubjectSummary| {
            let changed = it.changed_at.format("%Y-%m-%d %H:%M:%S").to_string();
            [it.subject.to_string(), it.newest.to_string(), it.compatibility.to_string(), changed]
        };
        table(["subject", ">version", "compatibility", "changed (UTC)"], subjects.iter().map(row))
    })
}

async fn version(
    catalog: &SchemaCatalog,
    subject: &SchemaSubject,
    version: Option<i32>,
) -> Result<SchemaVersion, Failure> {
    let found = match version {
        Some(version) => catalog.version(subject, version).await,
        None => catalog.versions(subject).await.map(|versions| versions.into_iter().next()),
    };
    found.map_err(refused)?.ok_or_else(|| absent(subject, version))
}

fn row(version: &SchemaVersion) -> [String; 5] {
    [
        version.version.to_string(),
        version.digest.chars().take(SHORT_DIGEST).collect(),
        version.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
        version.author.clone(),
        version.note.clone().unwrap_or_default(),
    ]
}

fn read(given: &str) -> Result<Value, Failure> {
    let text = match given {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        _ => match given.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path).map_err(about_file("read", path.as_ref()))?,
            None => given.to_owned(),
        },
    };
    serde_json::from_str(&text).map_err(|error| Failure::new(Kind::Usage, "That is not JSON").cause(error.to_string()))
}

fn absent(subject: &SchemaSubject, version: Option<i32>) -> Failure {
    let which = version.map_or_else(String::new, |version| format!(" version {version}"));
    Failure::not_found(format!("There is no schema {subject}{which}")).hint("`cogo schema list` shows them all")
}

fn incompatible(subject: &SchemaSubject, findings: &[Finding]) -> Failure {
    let mut text = String::new();
    for finding in findings {
        // writing to a String cannot fail
        let _ = write!(text, "\n  {finding}");
    }
    Failure::conflict(format!("The schema cannot be the next version of {subject}")).cause(text)
}

fn refused(error: SchemaError) -> Failure {
    match error {
        SchemaError::NotASchema(invalid) => Failure::new(Kind::Usage, invalid.to_string()),
        SchemaError::Incompatible(breaks) => incompatible(&breaks.subject, &breaks.findings)
            .hint("register it as another route, or with --compatibility none"),
        SchemaError::Busy { .. } => Failure::conflict(error.to_string()),
        SchemaError::Registry(error) => error.into(),
    }
}
