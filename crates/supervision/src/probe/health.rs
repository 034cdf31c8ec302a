//! The state that all probes make together, with its reasons.

use serde::Serialize;

use super::Kind;

/// What a probe has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Not enough answers yet.
    Unknown,
    /// It succeeds.
    Passing,
    /// It fails.
    Failing,
}

/// One probe as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeView {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub kind: Kind,
    /// What it has come to.
    pub verdict: Verdict,
    /// Failures in a row.
    pub failures: u32,
    /// Successes in a row.
    pub successes: u32,
    /// What the last failure said; none after a success.
    pub last_failure: Option<String>,
}

/// Why something is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Name of the probe.
    pub probe: String,
    /// What it is about.
    pub kind: Kind,
    /// What is wrong.
    pub text: String,
}

/// The one word for all of it, the worst first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Only a restart helps.
    Dead,
    /// Not up yet.
    Starting,
    /// Lives, and can take no work.
    NotReady,
    /// Works, and something is wrong.
    Degraded,
    /// All is well.
    Healthy,
}

/// The state that all probes make together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether every startup probe has succeeded.
    pub started: bool,
    /// Whether no startup or liveness probe fails.
    pub live: bool,
    /// Whether it has started, lives, and every readiness probe passes and no critical one fails.
    pub ready: bool,
    /// The one word for it.
    pub status: Status,
    /// Everything that is not as it should be, in the order of the probes.
    pub reasons: Vec<Reason>,
    /// Every probe, in the order in which they were given.
    pub probes: Vec<ProbeView>,
}

impl Health {
    pub(super) fn of(probes: Vec<ProbeView>, late: Vec<Reason>) -> Self {
        let any =
            |kind: Kind, verdict: Verdict| probes.iter().any(|probe| probe.kind == kind && probe.verdict == verdict);
        let all_pass = |kind: Kind| {
            probes.iter().filter(|probe| probe.kind == kind).all(|probe| probe.verdict == Verdict::Passing)
        };
        let started = all_pass(Kind::Startup);
        let live = !any(Kind::Startup, Verdict::Failing) && !any(Kind::Liveness, Verdict::Failing);
        let ready = started && live && all_pass(Kind::Readiness) && !any(Kind::Critical, Verdict::Failing);
        let degraded = any(Kind::Advisory, Verdict::Failing) || !late.is_empty();
        let status = match (live, started, ready, degraded) {
            (false, ..) => Status::Dead,
            (_, false, ..) => Status::Starting,
            (_, _, false, _) => Status::NotReady,
            (_, _, _, true) => Status::Degraded,
            _ => Status::Healthy,
        };
        let mut reasons: Vec<Reason> = probes.iter().filter_map(|probe| reason(probe, started)).collect();
        reasons.extend(late);
        Self { started, live, ready, status, reasons, probes }
    }
}

fn reason(probe: &ProbeView, started: bool) -> Option<Reason> {
    let text = match (probe.verdict, probe.kind) {
        (Verdict::Failing, _) => {
            let last = probe.last_failure.as_deref().unwrap_or("it has not succeeded often enough since");
            format!("failed {} times in a row: {last}", probe.failures)
        }
        (Verdict::Unknown, Kind::Startup) => "has not succeeded yet".to_owned(),
        (Verdict::Unknown, Kind::Readiness) if started => "has not succeeded yet".to_owned(),
        _ => return None,
    };
    Some(Reason { probe: probe.name.clone(), kind: probe.kind, text })
}
