//! Diagnose: scores each candidate and says which cannot be picked now, and why.

use cogo_contracts::{DecideRequest, Scores};

use crate::{
    plan::{Limits, Plan, Refusal},
    policy::Policy,
    scorers::{cost, health, kg, kg::Coverage, quality, recordable},
    sense::Target,
};

const NO_AGENT: &str = "no active agent";

/// A candidate with its scores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Diagnosis<'s> {
    pub(crate) target: &'s Target,
    pub(crate) limits: Limits,
    pub(crate) scores: Scores,
    pub(crate) eligible: bool,
    pub(crate) reason: Option<String>,
}

/// The four scores of a target under these limits.
pub(crate) fn scores(target: &Target, max_cost_usd: Option<f64>, coverage: Coverage, policy: &Policy) -> Scores {
    Scores {
        health: recordable(health::score(target, policy)),
        quality: recordable(quality::score(&target.stats)),
        cost: recordable(cost::score(target, max_cost_usd, policy)),
        kg: recordable(kg::score(target, coverage)),
    }
}

/// Scores all candidates. One without an active agent is passed over as long as another has one; if none has, the
/// message goes to the best of them all the same and waits there, since agents come back and the ttl bounds the wait.
pub(crate) fn diagnose<'s>(
    plan: &Plan<'s>,
    request: &DecideRequest,
    coverage: Coverage,
    policy: &Policy,
) -> Result<Vec<Diagnosis<'s>>, Refusal> {
    let mut diagnoses: Vec<Diagnosis<'s>> =
        plan.candidates.iter().map(|&(target, limits)| one(target, limits, coverage, policy)).collect();
    let affordable = |diagnosis: &Diagnosis<'_>| diagnosis.reason.as_deref().is_none_or(|reason| reason == NO_AGENT);
    if !diagnoses.iter().any(affordable) {
        let reasons = diagnoses.iter().map(|diagnosis| {
            format!("{}: {}", diagnosis.target.route, diagnosis.reason.as_deref().unwrap_or_default())
        });
        return Err(Refusal::NothingFits {
            intent: request.intent.clone(),
            reasons: reasons.collect::<Vec<_>>().join("; "),
        });
    }
    if !diagnoses.iter().any(|diagnosis| diagnosis.eligible) {
        for diagnosis in diagnoses.iter_mut().filter(|diagnosis| affordable(diagnosis)) {
            diagnosis.eligible = true;
            diagnosis.reason = Some(format!("{NO_AGENT}; the message waits for one"));
        }
    }
    Ok(diagnoses)
}

fn one<'s>(target: &'s Target, limits: Limits, coverage: Coverage, policy: &Policy) -> Diagnosis<'s> {
    let expected = cost::expected_usd(target);
    let reason = match limits.max_cost_usd {
        Some(budget) if expected > budget => {
            Some(format!("expected cost of {expected:.6} USD is over the budget of {budget:.6}"))
        }
        _ if !target.live => Some(NO_AGENT.to_owned()),
        _ => None,
    };
    let scores = scores(target, limits.max_cost_usd, coverage, policy);
    Diagnosis { target, limits, scores, eligible: reason.is_none(), reason }
}
