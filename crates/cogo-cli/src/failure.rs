//! How a command ends badly: what, why and what to do next, with an exit code that scripts can act on.

use std::{error::Error, fmt::Write as _, io};

use cogo_contracts::Problem;
use serde::Serialize;
use uuid::Uuid;

use crate::database_failure::{of_migration, of_statement, without_source_lines};

/// What a script would tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The operation was tried and did not succeed.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// The state of things does not allow it.
    Conflict,
    /// A key is missing, wrong or too weak.
    Auth,
    /// The time given has passed.
    Timeout,
    /// Something that is needed does not answer or does not run.
    Unavailable,
    /// The person at the keyboard broke it off.
    Interrupted,
    /// The reader of standard output has left; nobody needs to be told.
    ClosedPipe,
}

impl Kind {
    /// Every kind that is shown as an error.
    const SHOWN: [Self; 8] = [
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::Auth,
        Self::Timeout,
        Self::Unavailable,
        Self::Interrupted,
    ];

    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Auth => 5,
            Self::Timeout => 6,
            Self::Unavailable => 7,
            Self::Interrupted => 130,
        }
    }

    /// Stable name, title and nearest HTTP status.
    const fn problem(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::Failed | Self::ClosedPipe => ("failed", "The operation failed", 500),
            Self::Usage => ("usage", "The command line is wrong", 400),
            Self::NotFound => ("not-found", "No such thing", 404),
            Self::Conflict => ("conflict", "Not possible in this state", 409),
            Self::Auth => ("not-allowed", "Not allowed", 401),
            Self::Timeout => ("timeout", "The time given has passed", 504),
            Self::Unavailable => ("unavailable", "Not available", 503),
            Self::Interrupted => ("interrupted", "Interrupted", 499),
        }
    }

    /// The kind that an HTTP status of the front door means.
    pub(crate) const fn of_http(status: u16) -> Self {
        match status {
            401 | 403 => Self::Auth,
            404 | 410 => Self::NotFound,
            409 => Self::Conflict,
            408 | 504 => Self::Timeout,
            429 | 502 | 503 => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

/// A problem as it is told to programs.
#[derive(Debug, Serialize)]
pub(crate) struct ProblemWithId {
    #[serde(flatten)]
    problem: Problem,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    what: String,
    cause: Option<String>,
    hint: Option<String>,
    /// The message that was sent before it and goes on.
    sent: Option<Uuid>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), cause: None, hint: None, sent: None }
    }

    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, what)
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, what)
    }

    pub(crate) fn timeout(what: impl Into<String>) -> Self {
        Self::new(Kind::Timeout, what)
    }

    pub(crate) fn unavailable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, what)
    }

    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into()).filter(|cause| !cause.is_empty());
        self
    }

    /// The error and all that led to it.
    pub(crate) fn because(self, error: &(dyn Error + 'static)) -> Self {
        self.cause(chain(error))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the id of a message that is on the bus all the same, for programs.
    pub(crate) fn after_sending(mut self, id: Uuid) -> Self {
        self.sent = Some(id);
        self
    }

    /// The lines for people, without colours.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}", self.what);
        for (name, value) in [("cause", &self.cause), ("hint", &self.hint)] {
            if let Some(value) = value {
                // writing to a String cannot fail
                let _ = write!(text, "\n{name}: {value}");
            }
        }
        text
    }

    /// The object for programs.
    pub(crate) fn problem(&self) -> Problem {
        let (code, title, status) = self.kind.problem();
        let detail = match &self.cause {
            Some(cause) => format!("{}: {cause}", self.what),
            None => self.what.clone(),
        };
        let problem = Problem::new(status, code, title, detail);
        match &self.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }

    /// The same, with the id of what was sent.
    pub(crate) fn problem_with_id(&self) -> ProblemWithId {
        ProblemWithId { problem: self.problem(), id: self.sent }
    }

    /// What another `cogo` told by [`problem`](Self::problem).
    pub(crate) fn from_problem(problem: Problem) -> Self {
        let kind = Kind::SHOWN.into_iter().find(|kind| kind.problem().0 == problem.code).unwrap_or(Kind::Failed);
        Self { kind, what: problem.detail, cause: None, hint: problem.hint, sent: None }
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // some errors repeat their cause in their own text
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    cogo_telemetry::redacted(&without_source_lines(text, error)).into_owned()
}

impl From<cogo_bus_core::Error> for Failure {
    fn from(error: cogo_bus_core::Error) -> Self {
        use cogo_bus_core::Error as Bus;
        match &error {
            Bus::Refused { reason, .. } => Self::failed(format!("The bus refused the request: {reason}")),
            Bus::NotFound { reason } => Self::not_found(reason.clone()),
            Bus::Conflict { reason } => Self::conflict(reason.clone()),
            Bus::Database(source) => of_statement(source),
            Bus::Contract { .. } => Self::failed("A row is not of its contract").because(&error),
        }
    }
}

impl From<cogo_registry_core::Error> for Failure {
    fn from(error: cogo_registry_core::Error) -> Self {
        match &error {
            cogo_registry_core::Error::Database(source) => of_statement(source),
            other => Self::failed("The registry could not be read").because(other),
        }
    }
}

impl From<cogo_db::Error> for Failure {
    fn from(error: cogo_db::Error) -> Self {
        match &error {
            cogo_db::Error::Database(source) => of_statement(source),
            cogo_db::Error::Migrate(source) => of_migration(source),
        }
    }
}

impl From<cogo_pg_local::Error> for Failure {
    fn from(error: cogo_pg_local::Error) -> Self {
        Self::unavailable("The embedded Postgres is not available").because(&error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        of_statement(&error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Kind::ClosedPipe, "The reader has left");
        }
        Self::failed("Reading or writing did not work").because(&error)
    }
}

/// Says which file an operation was about.
pub(crate) fn about_file(action: &str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("Could not {action} {}", path.display());
    move |error| Failure::failed(what).because(&error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_has_its_exit_code() {
        let codes: Vec<u8> = Kind::SHOWN.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 130]);
        assert_eq!(Kind::ClosedPipe.exit_code(), 0);
    }

    #[test]
    fn errors_read_as_error_cause_and_hint() {
        let failure = Failure::unavailable("The database does not answer").cause("refused").hint("run `cogo up`");
        assert_eq!(failure.text(), "error: The database does not answer\ncause: refused\nhint: run `cogo up`");
        assert_eq!(Failure::failed("No").text(), "error: No");
    }

    #[test]
    fn a_failure_survives_the_way_through_a_problem() {
        for kind in Kind::SHOWN {
            let told = Failure::from_problem(Failure::new(kind, "what").cause("why").hint("how").problem());
            assert_eq!((told.kind, told.text().as_str()), (kind, "error: what: why\nhint: how"));
        }
    }

    #[test]
    fn what_was_sent_before_a_failure_is_named_to_programs() {
        let told = |failure: Failure| serde_json::to_value(failure.problem_with_id()).expect("it is plain data");
        let object = told(Failure::new(Kind::Interrupted, "Interrupted").after_sending(Uuid::nil()));
        assert_eq!((&object["code"], &object["id"]), (&json!("interrupted"), &json!(Uuid::nil())));
        assert!(told(Failure::failed("x")).get("id").is_none());
    }

    #[test]
    fn answers_of_the_bus_keep_their_meaning() {
        let reason = || "x".to_owned();
        assert_eq!(Failure::from(cogo_bus_core::Error::NotFound { reason: reason() }).kind, Kind::NotFound);
        assert_eq!(Failure::from(cogo_bus_core::Error::Conflict { reason: reason() }).kind, Kind::Conflict);
        assert_eq!(Failure::from(sqlx::Error::PoolTimedOut).kind, Kind::Unavailable);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).kind, Kind::ClosedPipe);
        assert_eq!(Kind::of_http(403), Kind::Auth);
        assert_eq!(Kind::of_http(422), Kind::Failed);
    }

    #[test]
    fn passwords_do_not_reach_an_error_text() {
        let error = io::Error::other("no host in postgres://cogo:hunter2@nowhere/cogo");
        assert!(!Failure::failed("x").because(&error).text().contains("hunter2"));
    }
}
