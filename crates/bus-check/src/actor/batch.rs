//! A handler of batches: the whole claim is one piece of work, and its ends are told in one call of each kind.

use std::time::Duration;

use cogo_bus_core::{Claimed, Completion, Failure, Fence};

use super::{
    Actor, Point,
    worker::{BETWEEN_TRIES, TRIES, complete_all, completion},
};

/// Works on all of them, a kill in the middle of it being one of the faults.
pub(super) async fn work(actor: &mut Actor, claimed: &[Claimed], work: Duration) {
    actor.pause(work / 2).await;
    actor.fault.at(Point::Working);
    actor.pause(work / 2).await;
    let mut failed: Vec<(Fence, Failure)> = Vec::new();
    let mut completed: Vec<(Fence, Completion)> = Vec::new();
    for message in claimed {
        match failure(actor, message) {
            Some(failure) => failed.push((message.fence(), failure)),
            None => completed.push((message.fence(), completion(actor, message, 0))),
        }
    }
    fail_all(actor, &failed).await;
    complete_all(actor, &completed).await;
}

/// Why a message fails, if it asks for that.
fn failure(actor: &mut Actor, message: &Claimed) -> Option<Failure> {
    let act = message.payload.get("act").and_then(serde_json::Value::as_str).unwrap_or("plain");
    let retriable = match act {
        "flaky" if message.attempt == 1 => true,
        "poison" => true,
        "reject" => false,
        _ => return None,
    };
    let wait = Duration::from_millis(actor.chance.below(60));
    Some(Failure { reason: "on purpose".to_owned(), retriable, retry_after: Some(wait) })
}

async fn fail_all(actor: &mut Actor, failed: &[(Fence, Failure)]) {
    if failed.is_empty() {
        return;
    }
    let holder = actor.name.clone();
    for _ in 0..TRIES {
        let call = actor.bus.fail_many(failed, &holder);
        if actor.fault.during(Point::Failing, &mut actor.chance, call).await.is_ok() {
            break;
        }
        actor.pause(BETWEEN_TRIES).await;
    }
}
