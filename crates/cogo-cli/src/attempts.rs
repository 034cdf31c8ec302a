//! The attempts of a message as lines for people.

use chrono::{DateTime, Utc};
use cogo_bus_core::Attempt;

use crate::format;

/// One line for each attempt, first to last; those that run last until `now`.
pub(crate) fn lines(history: &[Attempt], now: DateTime<Utc>) -> Vec<String> {
    history.iter().map(|attempt| line(attempt, now)).collect()
}

/// Number, beginning, time held, end, holder, reason.
fn line(attempt: &Attempt, now: DateTime<Utc>) -> String {
    let began = attempt.started_at.map_or_else(|| "-".to_owned(), |at| at.format("%H:%M:%S%.3f").to_string());
    let held = attempt.started_at.map(|from| format::milliseconds_between(from, attempt.ended_at.unwrap_or(now)));
    let held = held.map_or_else(|| "-".to_owned(), format::milliseconds);
    let holder = attempt.holder.as_deref().unwrap_or("-");
    let reason = attempt.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    let line =
        format!("#{:<3} {began:>12} {held:>10}  {:<13} {holder}{reason}", attempt.attempt, word(&attempt.outcome));
    format::one_line(&line)
}

fn word(outcome: &str) -> &str {
    match outcome {
        "lease_expired" => "lease expired",
        "holder_gone" => "holder gone",
        "released" => "handed back",
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn attempts_are_told_with_their_times_holders_and_reasons() {
        let at = |ms: i64| DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms);
        let attempt = |attempt, ended: Option<i64>, outcome: &str, error: Option<&str>| Attempt {
            attempt,
            holder: Some("rag-embed/0#7".to_owned()),
            started_at: Some(at(1_500)),
            ended_at: ended.map(at),
            outcome: outcome.to_owned(),
            error: error.map(str::to_owned),
        };
        let history =
            [attempt(1, Some(5_700), "lease_expired", Some("lease of x expired")), attempt(2, None, "running", None)];
        assert_eq!(
            lines(&history, at(1_542)),
            [
                "#1   00:00:01.500     4.20 s  lease expired rag-embed/0#7: lease of x expired",
                "#2   00:00:01.500    42.0 ms  running       rag-embed/0#7"
            ]
        );
    }
}
