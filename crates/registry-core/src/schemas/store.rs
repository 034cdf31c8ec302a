//! The SQL of schemas.

use chrono::{DateTime, Utc};
use cogo_contracts::{Compatibility, Direction, Route, SchemaSubject};
use serde_json::Value;
use sqlx::{PgExecutor, types::Json};

use super::catalog::{SchemaVersion, SubjectSummary};

/// Answer of `registry.register_schema`.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RegisterRow {
    pub(super) outcome: String,
    pub(super) version: i32,
    pub(super) digest: Option<Vec<u8>>,
}

/// A subject with its newest version, for the copy in memory.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct NewestRow {
    service: String,
    role: String,
    direction: String,
    pub(super) version: i32,
    pub(super) digest: Vec<u8>,
    /// None where the reader has it already.
    pub(super) document: Option<Json<Value>>,
}

#[derive(Debug, sqlx::FromRow)]
struct SubjectRow {
    service: String,
    role: String,
    direction: String,
    compatibility: String,
    newest: i32,
    changed_at: DateTime<Utc>,
}

#[derive(Debug, sqlx::FromRow)]
struct VersionRow {
    version: i32,
    digest: Vec<u8>,
    document: Json<Value>,
    author: String,
    note: Option<String>,
    created_at: DateTime<Utc>,
}

impl NewestRow {
    /// None for a name that this build does not know.
    pub(super) fn subject(&self) -> Option<SchemaSubject> {
        subject_of(&self.service, &self.role, &self.direction)
    }
}

/// What a schema is registered with.
pub(super) struct NewRow<'a> {
    pub(super) subject: &'a SchemaSubject,
    pub(super) document: &'a Value,
    pub(super) author: &'a str,
    pub(super) note: Option<&'a str>,
    pub(super) expected_newest: i32,
    pub(super) expected_compatibility: Compatibility,
}

pub(super) async fn register(executor: impl PgExecutor<'_>, new: &NewRow<'_>) -> Result<RegisterRow, sqlx::Error> {
    sqlx::query_as(
        "
        select r.outcome, r.version, r.digest
          from registry.register_schema($1, $2, $3, $4, $5, $6, $7, $8) as r
        ",
    )
    .bind(new.subject.route().service())
    .bind(new.subject.route().role())
    .bind(new.subject.direction().as_str())
    .bind(Json(new.document))
    .bind(new.author)
    .bind(new.expected_newest)
    .bind(new.expected_compatibility.as_str())
    .bind(new.note)
    .fetch_one(executor)
    .await
}

pub(super) async fn set_compatibility(
    executor: impl PgExecutor<'_>,
    subject: &SchemaSubject,
    compatibility: Compatibility,
    author: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select registry.set_schema_compatibility($1, $2, $3, $4, $5)")
        .bind(subject.route().service())
        .bind(subject.route().role())
        .bind(subject.direction().as_str())
        .bind(compatibility.as_str())
        .bind(author)
        .fetch_one(executor)
        .await
}

pub(super) async fn subjects(executor: impl PgExecutor<'_>) -> Result<Vec<SubjectSummary>, sqlx::Error> {
    let rows: Vec<SubjectRow> = sqlx::query_as(
        "
        select s.service, s.role, s.direction, s.compatibility, s.newest, s.changed_at
          from registry.schema_subjects s
         where s.newest > 0
         order by s.service, s.role, s.direction
        ",
    )
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(summary).collect()
}

pub(super) async fn subject(
    executor: impl PgExecutor<'_>,
    subject: &SchemaSubject,
) -> Result<Option<SubjectSummary>, sqlx::Error> {
    let row: Option<SubjectRow> = sqlx::query_as(
        "
        select s.service, s.role, s.direction, s.compatibility, s.newest, s.changed_at
          from registry.schema_subjects s
         where (s.service, s.role, s.direction) = ($1, $2, $3)
        ",
    )
    .bind(subject.route().service())
    .bind(subject.route().role())
    .bind(subject.direction().as_str())
    .fetch_optional(executor)
    .await?;
    row.map(summary).transpose()
}

/// The versions from the newest down to `from`, with their documents.
pub(super) async fn versions(
    executor: impl PgExecutor<'_>,
    subject: &SchemaSubject,
    from: i32,
    to: i32,
) -> Result<Vec<SchemaVersion>, sqlx::Error> {
    let rows: Vec<VersionRow> = sqlx::query_as(
        "
        select v.version, v.digest, d.document, v.author, v.note, v.created_at
          from registry.schema_versions v
          join registry.schema_documents d on d.digest = v.digest
         where (v.service, v.role, v.direction) = ($1, $2, $3) and v.version between $4 and $5
         order by v.version desc
        ",
    )
    .bind(subject.route().service())
    .bind(subject.route().role())
    .bind(subject.direction().as_str())
    .bind(from)
    .bind(to)
    .fetch_all(executor)
    .await?;
    let version = |row: VersionRow| SchemaVersion {
        subject: subject.to_string(),
        version: row.version,
        digest: hex(&row.digest),
        document: row.document.0,
        author: row.author,
        note: row.note,
        created_at: row.created_at,
    };
    Ok(rows.into_iter().map(version).collect())
}

/// Counts the changes of schemas.
pub(super) async fn newest_change(executor: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select c.schema_version from registry.clock c").fetch_one(executor).await
}

/// Every subject with its newest version, and the documents that are not among the known ones.
pub(super) async fn newest(
    executor: impl PgExecutor<'_>,
    known: &[Vec<u8>],
) -> Result<(i64, Vec<NewestRow>), sqlx::Error> {
    // one statement, so that the count and what it counts are of the same moment; one row at least, for the count
    let rows: Vec<CountedRow> = sqlx::query_as(
        "
        select c.schema_version, n.service, n.role, n.direction, n.version, n.digest, n.document
          from registry.clock c
          left join (
                 select v.service, v.role, v.direction, v.version, v.digest,
                        case when v.digest <> all ($1) then d.document end as document
                   from registry.schema_subjects s
                   join registry.schema_versions v
                     on (v.service, v.role, v.direction, v.version) = (s.service, s.role, s.direction, s.newest)
                   join registry.schema_documents d on d.digest = v.digest) as n on true
        ",
    )
    .bind(known)
    .fetch_all(executor)
    .await?;
    let change = rows.first().map_or(0, |row| row.schema_version);
    let found = rows.into_iter().filter_map(|row| {
        Some(NewestRow {
            service: row.service?,
            role: row.role?,
            direction: row.direction?,
            version: row.version?,
            digest: row.digest?,
            document: row.document,
        })
    });
    Ok((change, found.collect()))
}

#[derive(Debug, sqlx::FromRow)]
struct CountedRow {
    schema_version: i64,
    service: Option<String>,
    role: Option<String>,
    direction: Option<String>,
    version: Option<i32>,
    digest: Option<Vec<u8>>,
    document: Option<Json<Value>>,
}

fn summary(row: SubjectRow) -> Result<SubjectSummary, sqlx::Error> {
    let unknown = |what: &str| sqlx::Error::Decode(format!("unexpected {what} in registry.schema_subjects").into());
    Ok(SubjectSummary {
        subject: subject_of(&row.service, &row.role, &row.direction).ok_or_else(|| unknown("subject"))?,
        compatibility: row.compatibility.parse().map_err(|_| unknown("compatibility"))?,
        newest: row.newest,
        changed_at: row.changed_at,
    })
}

fn subject_of(service: &str, role: &str, direction: &str) -> Option<SchemaSubject> {
    let direction = match direction {
        "request" => Direction::Request,
        "reply" => Direction::Reply,
        _ => return None,
    };
    Some(SchemaSubject::new(&Route::new(service, role, 0).ok()?, direction))
}

/// Bytes in hexadecimal, as people compare them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
