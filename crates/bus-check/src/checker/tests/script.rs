//! Writes histories by hand, and the rows that a correct bus would end with.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Accepted, AgentRow, Answer, AttemptRow, Call, Ending, EventRow, Held, Invariant, MessageRow, Operation, Outcome,
    Report, Rest, Rows, Sent, Taken, check,
};

/// Lease of every claim in these histories, in ms.
pub(super) const LEASE_MS: i64 = 1_000;

/// A history under construction; each call begins 1 ms after the one before and takes half of that.
#[derive(Default)]
pub(super) struct Script {
    pub(super) calls: Vec<Call>,
    pub(super) rows: Rows,
    pub(super) now_us: i64,
}

pub(super) fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(super) fn held(number: u128, attempt: i16) -> Held {
    Held { id: id(number), attempt }
}

pub(super) fn ok(answer: Answer) -> Outcome {
    Outcome::Ok(answer)
}

pub(super) fn unknown() -> Outcome {
    Outcome::Unknown("connection reset".to_owned())
}

pub(super) fn refused() -> Outcome {
    Outcome::Failed("refused".to_owned())
}

/// The reply of attempt `attempt` of `holder`.
pub(super) fn reply(holder: &str, attempt: i16) -> Value {
    json!({"by": holder, "attempt": attempt})
}

impl Script {
    pub(super) fn call(&mut self, operation: Operation, outcome: Outcome) {
        self.now_us += 1_000;
        let returned_us = (!matches!(outcome, Outcome::Unknown(_))).then_some(self.now_us + 500);
        let number = self.calls.len() as u64 + 1;
        self.calls.push(Call {
            process: "p".to_owned(),
            number,
            invoked_us: self.now_us,
            client_ms: 0,
            operation,
            outcome,
            returned_us,
        });
    }

    pub(super) fn later(&mut self, milliseconds: i64) {
        self.now_us += milliseconds * 1_000;
    }

    /// Sends a message of tenant `acme` without id and key.
    pub(super) fn send(&mut self, number: u128) {
        self.send_as(number, Sent { tenant: "acme".to_owned(), ..Sent::default() }, false);
    }

    pub(super) fn send_as(&mut self, number: u128, sent: Sent, duplicate: bool) {
        let accepted = Accepted { id: id(number), duplicate };
        self.call(Operation::Enqueue { messages: vec![sent] }, ok(Answer::Enqueued(vec![accepted])));
    }

    pub(super) fn claim(&mut self, holder: &str, number: u128, attempt: i16) {
        let taken = Taken { held: held(number, attempt), tenant: "acme".to_owned(), remaining_ms: None, mark: None };
        self.call(claiming(holder), ok(Answer::Taken(vec![taken])));
    }

    pub(super) fn complete(&mut self, holder: &str, number: u128, attempt: i16, recorded: bool) {
        let still = if recorded { vec![id(number)] } else { Vec::new() };
        self.call(completing(holder, number, attempt), ok(Answer::Still(still)));
    }

    pub(super) fn fail(&mut self, holder: &str, number: u128, attempt: i16, again: bool) {
        let asked = Operation::Fail { holder: holder.to_owned(), held: held(number, attempt), retriable: again };
        self.call(asked, ok(Answer::Settled(Some(again))));
    }

    /// A finished row as it stands after `attempts` claims, the last of them by `holder`.
    pub(super) fn row(&mut self, number: u128, status: &str, holder: &str, attempts: i16) -> &mut MessageRow {
        let sent_us = self.calls.iter().find_map(|call| match call.answer() {
            Some(Answer::Enqueued(all)) if all.iter().any(|one| one.id == id(number) && !one.duplicate) => {
                Some(call.invoked_us + 100)
            }
            _ => None,
        });
        let ended = matches!(status, "done" | "failed" | "cancelled");
        if status == "failed" {
            self.event(number, "message_failed");
        }
        if status == "cancelled" {
            self.event(number, "message_cancelled");
        }
        self.rows.messages.push(MessageRow {
            id: id(number),
            created_us: sent_us.unwrap_or(self.now_us),
            route: "test/work/0".to_owned(),
            tenant: "acme".to_owned(),
            status: status.to_owned(),
            attempts,
            released: 0,
            max_attempts: 5,
            claimed_by: (attempts > 0).then(|| holder.to_owned()),
            claimed_us: None,
            expires_us: None,
            done_us: ended.then_some(self.now_us),
            root_id: id(number),
            parent_id: None,
            replay_of: None,
            idempotency_key: None,
            group_key: None,
            result: (status == "done").then(|| reply(holder, attempts)),
            error: None,
            priority: 500,
            assignment: None,
            mark: None,
            said: None,
        });
        self.rows.messages.last_mut().unwrap()
    }

    pub(super) fn event(&mut self, number: u128, kind: &str) {
        let tenant = "acme".to_owned();
        self.rows.events.push(EventRow { kind: kind.to_owned(), tenant, message_id: id(number), attempt: None });
    }

    /// What the database notes of an attempt that ended without a completion.
    pub(super) fn noted(&mut self, number: u128, attempt: i16, holder: &str, started_us: Option<i64>) {
        self.rows.attempts.push(AttemptRow { id: id(number), attempt, holder: holder.to_owned(), started_us });
    }

    pub(super) fn agent(&mut self, epoch: i64) {
        let agent = AgentRow { name: "w".to_owned(), slot: 0, epoch, holder: format!("w/0#{epoch}"), lives: true };
        self.rows.agents.push(agent);
    }

    fn report(&mut self, rest: Rest) -> Report {
        if self.rows.shown.is_empty() {
            for row in &self.rows.messages {
                *self.rows.shown.entry(row.status.clone()).or_default() += 1;
            }
        }
        check(&self.calls, &self.rows, rest)
    }

    /// Nothing is found in this history.
    pub(super) fn passes(&mut self) {
        let report = self.report(Rest::Drained);
        assert!(report.violations.is_empty(), "{report}");
    }

    /// Exactly this promise is seen to be broken, with a text that says `what`.
    pub(super) fn breaks(&mut self, invariant: Invariant, what: &str) {
        let report = self.report(Rest::Drained);
        assert!(report.breaks(invariant), "nothing of {invariant} in: {report}");
        let others = report.violations.iter().filter(|violation| violation.invariant != invariant).count();
        assert_eq!(others, 0, "{report}");
        assert!(report.to_string().contains(what), "no {what:?} in: {report}");
    }
}

pub(super) fn claiming(holder: &str) -> Operation {
    Operation::Claim { holder: holder.to_owned(), lease_ms: LEASE_MS }
}

pub(super) fn completing(holder: &str, number: u128, attempt: i16) -> Operation {
    completing_with(holder, number, attempt, 0)
}

pub(super) fn completing_with(holder: &str, number: u128, attempt: i16, follow_ups: usize) -> Operation {
    let ending = Ending { held: held(number, attempt), result: Some(reply(holder, attempt)), follow_ups };
    Operation::Complete { holder: holder.to_owned(), ended: vec![ending] }
}

/// Sent, claimed, completed by `a`, and the row says so.
pub(super) fn done(script: &mut Script, number: u128) {
    script.send(number);
    script.claim("a", number, 1);
    script.complete("a", number, 1, true);
    script.row(number, "done", "a", 1);
}
