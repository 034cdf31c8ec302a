//! `cogo doctor`: looks at everything that a fleet needs, and says what to do about what is missing.

use clap::Args;
use serde::Serialize;

use crate::{
    command::{doctor_database, doctor_machine},
    context::Context,
    failure::Failure,
    fleet::ProcessList,
    output::Look,
};

/// Check the programs, the database, the ports and the disk that a fleet needs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo doctor\n  cogo doctor --json\n  cogo doctor --port-offset 100")]
pub(crate) struct Doctor {
    /// The offset with which the fleet would be started.
    #[arg(long, value_name = "N", default_value_t = 0, env = "COGO_PORT_OFFSET")]
    port_offset: u16,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// It works, or will; but look.
    Warn,
    /// A fleet cannot run like this.
    Fail,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), hint: None }
    }

    pub(crate) fn warn(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, detail: detail.into(), hint: Some(hint.into()) }
    }

    pub(crate) fn fail(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, detail: detail.into(), hint: Some(hint.into()) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Finding],
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let list = ProcessList::read(None)?;
        let state = context.home.read_state()?;
        let mut findings = vec![
            doctor_machine::programs(&list),
            doctor_machine::postgres_programs(context),
            doctor_machine::disk(context),
            doctor_machine::ports(&list, state.as_ref(), self.port_offset),
        ];
        findings.extend(Box::pin(doctor_database::look(context)).await);

        let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
        let report = Report { ok: failed == 0, checks: &findings };
        context.output.either(&report, || {
            let lines: Vec<String> = findings.iter().map(|finding| line(context, finding)).collect();
            lines.join("\n")
        })?;
        if failed == 0 { Ok(()) } else { Err(Failure::failed(format!("{failed} checks failed"))) }
    }
}

fn line(context: &Context, finding: &Finding) -> String {
    let (word, look) = match finding.verdict {
        Verdict::Ok => ("ok  ", Look::Good),
        Verdict::Warn => ("warn", Look::Warning),
        Verdict::Fail => ("fail", Look::Bad),
    };
    let hint = finding.hint.as_ref().map_or_else(String::new, |hint| format!("\n{:<24}hint: {hint}", ""));
    format!("{}  {:<16}  {}{hint}", context.output.paint.paint(look, word), finding.name, finding.detail)
}
