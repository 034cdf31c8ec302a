//! I1, second half: a message is what its sender described, in every column, and so it is handed out.

use serde_json::Value;

use crate::{history::Call, rows::MessageRow};

use super::{
    Harm, Invariant, Report,
    index::{Index, Story},
};

/// Longest time between two looks at the clock within one call, in microseconds.
const ONE_CALL_US: i64 = 5_000_000;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let none = Story::default();
    for row in &index.rows.messages {
        let story = index.stories.get(&row.id).unwrap_or(&none);
        // under a known key it is another message that was sent first
        for sending in story.sendings.iter().filter(|sending| !sending.accepted.duplicate) {
            if sending.sent.mark != row.mark {
                report.add(Invariant::I1, Harm::Lost, Some(row.id), unlike("stored", row), &[sending.call]);
            }
        }
        let claims = story.claims.iter().filter(|claim| claim.taken.mark.is_some() && claim.taken.mark != row.mark);
        let wrong: Vec<&Call> = claims.map(|claim| claim.call).collect();
        if !wrong.is_empty() {
            report.add(Invariant::I1, Harm::Lost, Some(row.id), unlike("handed out", row), &wrong);
        }
        // what is sent again by a replay keeps the payload, and stands for itself otherwise
        if row.replay_of.is_none()
            && let Some(column) = row.said.as_ref().and_then(|said| differing(row, said))
        {
            let calls: Vec<&Call> = story.sendings.iter().map(|sending| sending.call).collect();
            let what = format!("its {column} is not what its sender said");
            report.add(Invariant::I1, Harm::Lost, Some(row.id), what, &calls);
        }
    }
}

fn unlike(how: &str, row: &MessageRow) -> String {
    format!("{how} with the payload of another message: {}", row.mark.as_deref().unwrap_or("unmarked"))
}

/// The first column that is not as its sender said in the payload.
fn differing(row: &MessageRow, said: &Value) -> Option<&'static str> {
    let text = |name: &str| said.get(name).and_then(Value::as_str);
    let number = |name: &str| said.get(name).and_then(Value::as_i64);
    [
        ("tenant", text("tenant") == Some(&row.tenant)),
        ("idempotency key", text("key") == row.idempotency_key.as_deref()),
        ("group", text("group") == row.group_key.as_deref()),
        ("priority", number("priority").is_none_or(|priority| priority == i64::from(row.priority))),
        (
            "time to live",
            number("ttl").is_none_or(|ttl| {
                row.expires_us.is_some_and(|expires| (expires - row.created_us - ttl * 1_000).abs() <= ONE_CALL_US)
            }),
        ),
        ("number of attempts", number("attempts").is_none_or(|attempts| attempts == i64::from(row.max_attempts))),
    ]
    .into_iter()
    .find_map(|(column, is_kept)| (!is_kept).then_some(column))
}
