//! What the database says where it does not do as it was told, and what to do about it.

use std::error::Error;

use sqlx::{error::DatabaseError, migrate::MigrateError, postgres::PgDatabaseError};

use crate::failure::{Failure, Kind};

/// How an address looks, for whoever gave none.
pub(crate) const ADDRESS_EXAMPLE: &str = "it looks like postgres://user:password@host:5432/cogo";

/// A statement that did not work: the schema is missing, the password is wrong, or nobody answers.
pub(crate) fn of_statement(error: &sqlx::Error) -> Failure {
    if matches!(error, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) {
        return Failure::failed("The database answers something that cannot be read").because(error);
    }
    let refusal = error.as_database_error();
    let code = refusal.and_then(DatabaseError::code).unwrap_or_default().into_owned();
    let refused = |kind: Kind, what: &str| Failure::new(kind, what).because(error);
    match code.as_str() {
        // undefined table, function, schema
        "42P01" | "42883" | "3F000" => {
            refused(Kind::Conflict, "The database has no schema of COGO, or an old one").hint("run `cogo migrate`")
        }
        "3D000" => refused(Kind::Unavailable, "There is no such database").hint(format!(
            "create it: `createdb {}`, then `cogo migrate`; or check DATABASE_URL",
            refusal.and_then(|refusal| quoted(refusal.message())).unwrap_or("NAME")
        )),
        "28000" | "28P01" => refused(Kind::Auth, "The database does not let this user in")
            .hint("check the user and the password in DATABASE_URL"),
        "42501" => refused(Kind::Auth, "The database does not allow this user to do that").hint(
            "let the login become service_role: `grant service_role to LOGIN; alter role LOGIN set role = 'service_role'`",
        ),
        // it starts, stops, or has no connection left
        "57P03" | "53300" => refused(Kind::Unavailable, "The database takes no connections now"),
        "" => refused(Kind::Unavailable, "The database does not answer")
            .hint("start it with `cogo up`, or check DATABASE_URL; `cogo doctor` looks closer"),
        _ => refused(Kind::Failed, "The database refused a statement"),
    }
}

/// A schema that could not be brought to this build's: it is ahead, belongs to somebody else, or a migration failed.
pub(crate) fn of_migration(error: &MigrateError) -> Failure {
    if let MigrateError::VersionMissing(version) = error {
        return Failure::conflict("This build is older than the schema")
            .cause(format!("the database has migration {version}, which this build does not know"))
            .hint("use a newer cogo; the schema never goes back");
    }
    let failure = Failure::failed("The schema could not be brought up").because(error);
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else { return failure };
    match of_statement(source).kind {
        Kind::Auth => needs_the_owner(failure),
        Kind::Unavailable => of_statement(source),
        _ => failure,
    }
}

/// A login of a worker may do everything else.
pub(crate) fn needs_the_owner(mut failure: Failure) -> Failure {
    failure.kind = Kind::Auth;
    failure.hint("run `cogo migrate` with the DATABASE_URL of the owner of the schema; other roles may not")
}

/// The first name in double quotes.
fn quoted(message: &str) -> Option<&str> {
    message.split('"').nth(1).filter(|name| !name.is_empty())
}

/// The text of an error without the line of Postgres' own source that `sqlx` tells, which helps nobody here.
pub(crate) fn without_source_lines(mut text: String, error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(link) = next {
        let refusal = link.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        let refusal = refusal.and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>());
        if let Some(line) = refusal.and_then(PgDatabaseError::line) {
            text = text.replace(&format!(" at line {line}"), "");
        }
        next = link.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_missing_database_is_taken_from_the_refusal() {
        assert_eq!(quoted("database \"nope\" does not exist"), Some("nope"));
        assert_eq!(quoted("Datenbank \u{bb}nope\u{ab} existiert nicht"), None);
    }

    #[test]
    fn a_schema_that_is_ahead_asks_for_a_newer_build() {
        let failure = of_migration(&MigrateError::VersionMissing(29991231000000));
        assert_eq!(failure.kind, Kind::Conflict);
        assert!(failure.text().contains("29991231000000") && failure.text().contains("newer cogo"), "{failure:?}");
    }

    #[tokio::test]
    async fn refusals_are_told_without_the_line_of_the_servers_source() {
        let database = cogo_test_support::empty_database().await;
        let error = sqlx::query("select nothing").execute(&database.pool).await.unwrap_err();
        assert!(error.to_string().contains("nothing") && crate::failure::chain(&error).ends_with("does not exist"));
        let error = cogo_bus_core::Error::Database(error);
        assert!(crate::failure::chain(&error).ends_with("\"nothing\" does not exist"));
    }
}
