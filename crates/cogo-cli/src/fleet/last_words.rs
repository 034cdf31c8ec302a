//! What a process said last, out of the end of its log.

use serde_json::Value;

/// A complaint and the line that explains it.
const LINES: usize = 2;

/// The last complaint, on one line; lines of JSON are reduced to what they say.
pub(crate) fn last_words(log: &[String]) -> String {
    let spoken: Vec<String> = log.iter().map(|line| said(line)).collect();
    let plain = log.iter().rev().take_while(|line| !line.starts_with('{')).count();
    let wanted = plain.clamp(1, LINES).min(spoken.len());
    spoken[spoken.len() - wanted..].join("; ")
}

fn said(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return line.to_owned() };
    let field = |name: &str| fields.get(name).and_then(Value::as_str);
    match (field("message"), field("error")) {
        (Some(message), Some(error)) => format!("{message}: {error}"),
        (Some(message), None) => message.to_owned(),
        (None, _) => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &[&str], expected: &str) {
        let log: Vec<String> = log.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(last_words(&log), expected);
    }

    #[test]
    fn json_is_reduced_to_message_and_error() {
        check(&[], "");
        check(&["x", r#"{"level":"ERROR","message":"gave up","error":"no schema"}"#], "gave up: no schema");
        check(&[r#"{"message":"started"}"#, "Setting not usable: port"], "Setting not usable: port");
        check(&["a", "missing operand", "try --help"], "missing operand; try --help");
        check(&["{broken"], "{broken");
    }
}
