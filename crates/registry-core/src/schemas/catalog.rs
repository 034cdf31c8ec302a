//! Registering schemas and reading what was registered; always asks the database.

use chrono::{DateTime, Utc};
use cogo_contracts::{Compatibility, SchemaSubject};
use serde::{Serialize, Serializer};
use serde_json::Value;
use sqlx::PgPool;

use super::{
    comparison,
    document::{NotASchema, SchemaDocument},
    finding::{Finding, Incompatible, Towards},
    store::{self, NewRow, hex},
};
use crate::registry::Error;

/// How often it is judged again because somebody else registered meanwhile.
const TRIES: u8 = 5;
/// Who reads next may be older by any number of versions; more than these are not kept apart in practice.
const ALL_VERSIONS: (i32, i32) = (1, i32::MAX);

/// A schema that is to become the next version of its subject.
#[derive(Debug, Clone)]
pub struct NewSchema {
    /// What it is for.
    pub subject: SchemaSubject,
    /// The schema.
    pub document: SchemaDocument,
    /// Who registers it.
    pub author: String,
    /// What changed.
    pub note: Option<String>,
    /// The rule of a subject that is new; backward if absent. An existing subject keeps its own.
    pub compatibility: Option<Compatibility>,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisteredSchema {
    /// Its version.
    pub version: i32,
    /// SHA-256 of its content, in hexadecimal.
    pub digest: String,
    /// False when it was the newest version already.
    pub added: bool,
}

/// A version of a schema.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SchemaVersion {
    /// `service/role/direction`.
    pub subject: String,
    /// Number within the subject, from 1.
    pub version: i32,
    /// SHA-256 of its content, in hexadecimal.
    pub digest: String,
    /// The schema.
    pub document: Value,
    /// Who registered it.
    pub author: String,
    /// What changed.
    pub note: Option<String>,
    /// When it was registered, by the database clock.
    pub created_at: DateTime<Utc>,
}

/// A subject that has a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectSummary {
    /// What it is.
    #[serde(serialize_with = "as_text")]
    pub subject: SchemaSubject,
    /// What the next version must keep.
    pub compatibility: Compatibility,
    /// Newest version.
    pub newest: i32,
    /// When a version was added or the rule was changed last, by the database clock.
    pub changed_at: DateTime<Utc>,
}

/// Why a schema was not registered or read.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It is no schema, or not one that can be compared.
    #[error(transparent)]
    NotASchema(#[from] NotASchema),
    /// It breaks the rule of its subject.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// Others registered or changed the rule each time that it had been judged.
    #[error("Schema {subject} changes too often to register another version now")]
    Busy {
        /// What it was for.
        subject: SchemaSubject,
    },
    /// The database did not answer or refused.
    #[error(transparent)]
    Registry(#[from] Error),
}

/// The schemas in the database.
#[derive(Debug, Clone)]
pub struct SchemaCatalog {
    pool: PgPool,
}

impl SchemaCatalog {
    /// The schemas of the pool's database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Adds a version, if it keeps the rule of its subject. Asking twice adds one version.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub async fn register(&self, new: &NewSchema) -> Result<RegisteredSchema, SchemaError> {
        for _ in 0..TRIES {
            let known = store::subject(&self.pool, &new.subject).await.map_err(database)?;
            let rule =
                known.as_ref().map_or(new.compatibility.unwrap_or(Compatibility::Backward), |it| it.compatibility);
            let newest = known.map_or(0, |it| it.newest);
            let findings = self.findings(&new.subject, &new.document, rule, newest).await?;
            if !findings.is_empty() {
                return Err(Incompatible { subject: new.subject.clone(), findings }.into());
            }
            let row = NewRow {
                subject: &new.subject,
                document: new.document.as_value(),
                author: &new.author,
                note: new.note.as_deref(),
                expected_newest: newest,
                expected_compatibility: rule,
            };
            let row = store::register(&self.pool, &row).await.map_err(database)?;
            // the digest is absent when somebody else came first
            if let Some(digest) = row.digest {
                let added = row.outcome == "registered";
                return Ok(RegisteredSchema { version: row.version, digest: hex(&digest), added });
            }
        }
        Err(SchemaError::Busy { subject: new.subject.clone() })
    }

    /// What would keep a schema from becoming the next version, under the subject's rule or another.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn judge(
        &self,
        subject: &SchemaSubject,
        document: &SchemaDocument,
        rule: Option<Compatibility>,
    ) -> Result<Vec<Finding>, SchemaError> {
        let known = store::subject(&self.pool, subject).await.map_err(database)?;
        let newest = known.as_ref().map_or(0, |it| it.newest);
        let rule = rule.or(known.map(|it| it.compatibility)).unwrap_or(Compatibility::Backward);
        self.findings(subject, document, rule, newest).await
    }

    /// Changes what the next version must keep; false if there is no such subject.
    ///
    /// # Errors
    /// When the database does not answer or refuses the author's name.
    pub async fn set_compatibility(
        &self,
        subject: &SchemaSubject,
        rule: Compatibility,
        author: &str,
    ) -> Result<bool, SchemaError> {
        Ok(store::set_compatibility(&self.pool, subject, rule, author).await.map_err(database)?)
    }

    /// Every subject, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn subjects(&self) -> Result<Vec<SubjectSummary>, SchemaError> {
        Ok(store::subjects(&self.pool).await.map_err(database)?)
    }

    /// The versions of a subject, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn versions(&self, subject: &SchemaSubject) -> Result<Vec<SchemaVersion>, SchemaError> {
        let (from, to) = ALL_VERSIONS;
        Ok(store::versions(&self.pool, subject, from, to).await.map_err(database)?)
    }

    /// One version of a subject.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn version(&self, subject: &SchemaSubject, version: i32) -> Result<Option<SchemaVersion>, SchemaError> {
        Ok(store::versions(&self.pool, subject, version, version).await.map_err(database)?.pop())
    }

    async fn findings(
        &self,
        subject: &SchemaSubject,
        document: &SchemaDocument,
        rule: Compatibility,
        newest: i32,
    ) -> Result<Vec<Finding>, SchemaError> {
        if rule == Compatibility::None || newest == 0 {
            return Ok(Vec::new());
        }
        let from = if rule.is_transitive() { 1 } else { newest };
        let earlier = store::versions(&self.pool, subject, from, newest).await.map_err(database)?;
        let new = document.relaxed();
        let mut findings = Vec::new();
        for old in earlier {
            let relaxed = SchemaDocument::parse(old.document)?.relaxed();
            if rule.reads_old_data() {
                findings.extend(comparison::findings(&relaxed, &new, Towards::Backward, old.version));
            }
            if rule.is_read_by_old() {
                findings.extend(comparison::findings(&relaxed, &new, Towards::Forward, old.version));
            }
        }
        Ok(findings)
    }
}

fn database(error: sqlx::Error) -> Error {
    Error::Database(error)
}

fn as_text<S: Serializer>(subject: &SchemaSubject, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(subject)
}
