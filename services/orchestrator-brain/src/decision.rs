//! A decision: what could have been picked, what was, and how to take it again.

use cogo_contracts::{Assignment, Candidate, DecideReply, DecideRequest, DispatchRequest, NewMessage, Route, routes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    allocate::{Allocation, allocate},
    diagnose::diagnose,
    plan::{Refusal, plan},
    policy::{Policy, Weights},
    scorers::kg::Coverage,
    sense::Snapshot,
};

/// A candidate as a decision records it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedCandidate {
    /// Its key in `orch_targets`.
    pub target_id: i64,
    /// Route, model, scores, total and probability.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Whether it could be picked.
    pub eligible: bool,
    /// Why it could not, or what is wrong with it all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A decision that is not carried out yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Its key, and the seed of its draw.
    pub id: Uuid,
    /// Whose task it is about.
    pub tenant: String,
    /// What is wanted.
    pub intent: String,
    /// Everything that could have been picked.
    pub candidates: Vec<RecordedCandidate>,
    /// Index of what was.
    pub chosen: usize,
    /// Share of exploration.
    pub epsilon: f64,
    /// Whether the pick was exploration.
    pub explored: bool,
    /// How the scores added up.
    pub weights: Weights,
    /// Limits for the dispatcher.
    pub assignment: Assignment,
    /// The request for the target.
    pub payload: Value,
    /// Time in ms that the caller gave the whole task.
    pub task_ttl_ms: Option<u64>,
}

/// The message that a decision answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The message of orchestrator/decide.
    pub message_id: Uuid,
    /// Its task.
    pub task_id: Uuid,
    /// Who holds the claim on it.
    pub holder: String,
}

impl Decision {
    /// Takes a decision; the same arguments give the same one.
    ///
    /// # Errors
    /// [`Refusal`] when the request cannot be served as it is.
    pub(crate) fn take(
        id: Uuid,
        snapshot: &Snapshot,
        tenant: &str,
        request: &DecideRequest,
        coverage: Coverage,
        policy: &Policy,
    ) -> Result<Self, Refusal> {
        let plan = plan(snapshot, tenant, request)?;
        let diagnoses = diagnose(&plan, request, coverage, policy)?;
        let totals: Vec<Option<f64>> = diagnoses
            .iter()
            .map(|diagnosis| diagnosis.eligible.then(|| policy.weights.total(&diagnosis.scores)))
            .collect();
        let eligible = totals.iter().flatten().count();
        let epsilon = policy.epsilon(eligible, snapshot.decisions_on(&request.intent));
        let allocation = allocate(id, &totals, epsilon).expect("a diagnosis without refusal leaves someone eligible");
        let candidates = diagnoses.iter().zip(&allocation.probabilities).map(|(diagnosis, &probability)| {
            let candidate = Candidate {
                route: diagnosis.target.route.clone(),
                model: diagnosis.target.model.clone(),
                scores: diagnosis.scores,
                total: policy.weights.total(&diagnosis.scores),
                probability,
            };
            let reason = diagnosis.reason.clone();
            RecordedCandidate { target_id: diagnosis.target.id, candidate, eligible: diagnosis.eligible, reason }
        });
        let pick = &diagnoses[allocation.chosen];
        Ok(Self {
            id,
            tenant: tenant.to_owned(),
            intent: request.intent.clone(),
            candidates: candidates.collect(),
            chosen: allocation.chosen,
            epsilon,
            explored: allocation.explored,
            weights: policy.weights,
            assignment: pick.limits.assignment(pick.target.model.clone(), id),
            payload: plan.payload,
            task_ttl_ms: request.ttl_ms,
        })
    }

    /// What was picked.
    #[must_use]
    pub fn pick(&self) -> &RecordedCandidate {
        &self.candidates[self.chosen]
    }

    /// Where the work goes.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.pick().candidate.route
    }

    /// The result of orchestrator/decide.
    #[must_use]
    pub fn reply(&self) -> DecideReply {
        let pick = &self.pick().candidate;
        DecideReply {
            decision_id: self.id,
            route: pick.route.clone(),
            model: pick.model.clone(),
            explored: self.explored,
            epsilon: self.epsilon,
            probability: pick.probability,
            candidates: self.candidates.iter().map(|recorded| recorded.candidate.clone()).collect(),
        }
    }

    /// The message to the dispatcher, under an id that the record can name.
    ///
    /// # Errors
    /// When the request does not serialize, which no JSON object does.
    pub fn dispatch(&self) -> Result<NewMessage, serde_json::Error> {
        let request = DispatchRequest {
            target: self.route().clone(),
            payload: self.payload.clone(),
            assignment: self.assignment.clone(),
        };
        let mut message = NewMessage::follow_up(routes::DISPATCH, &request)?;
        message.id = Some(Uuid::now_v7());
        // the caller's time is the task's and runs from here on; the target's runs from dispatch
        message.ttl_ms = self.task_ttl_ms.and(self.assignment.ttl_ms);
        Ok(message)
    }
}

/// Takes a recorded decision again from its scores; equal to the record bit for bit.
#[must_use]
pub fn replay(id: Uuid, candidates: &[RecordedCandidate], weights: &Weights, epsilon: f64) -> Option<Allocation> {
    let totals: Vec<Option<f64>> = candidates
        .iter()
        .map(|recorded| recorded.eligible.then(|| weights.total(&recorded.candidate.scores)))
        .collect();
    allocate(id, &totals, epsilon)
}
