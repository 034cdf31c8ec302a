//! Keeps secrets out of log lines: fields that are named like one, passwords in addresses, bearer tokens.

use std::borrow::Cow;

/// What stands in place of a secret.
pub(crate) const MASK: &str = "***";

const SECRET_NAMES: [&str; 8] =
    ["password", "passwd", "secret", "token", "api_key", "apikey", "authorization", "service_role_key"];

/// Whether a field of this name holds a secret. Counts such as `max_tokens` do not.
pub(crate) fn is_secret(field: &str) -> bool {
    let last_part = field.rsplit('.').next().unwrap_or(field);
    SECRET_NAMES.iter().any(|name| {
        let split = last_part.len().checked_sub(name.len()).and_then(|at| last_part.split_at_checked(at));
        split.is_some_and(|(before, end)| {
            end.eq_ignore_ascii_case(name) && (before.is_empty() || before.ends_with(['_', '-']))
        })
    })
}

/// The text without passwords in addresses (`scheme://user:password@host`) and without bearer tokens.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    let without_bearer = mask_after(text, "Bearer ", |rest| {
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',')).unwrap_or(rest.len());
        (end > 0).then_some(0..end)
    });
    match without_bearer {
        Cow::Borrowed(unchanged) => mask_after(unchanged, "://", password_of_authority),
        Cow::Owned(changed) => Cow::Owned(mask_after(&changed, "://", password_of_authority).into_owned()),
    }
}

/// The password's place in what follows `://`, if there is one.
fn password_of_authority(rest: &str) -> Option<std::ops::Range<usize>> {
    let authority_end =
        rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'')).unwrap_or(rest.len());
    // an unescaped slash in a password would end the authority early, so the last @ of the word counts as well
    let word_end = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).unwrap_or(rest.len());
    let at = rest[..authority_end].rfind('@').or_else(|| {
        let at = rest[..word_end].find('@')?;
        rest[..at].contains(':').then_some(at)
    })?;
    let colon = rest[..at].find(':')?;
    Some(colon + 1..at)
}

fn mask_after<'text>(
    text: &'text str,
    marker: &str,
    secret: impl Fn(&str) -> Option<std::ops::Range<usize>>,
) -> Cow<'text, str> {
    if !text.contains(marker) {
        return Cow::Borrowed(text);
    }
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(marker) {
        let (before, after) = rest.split_at(at + marker.len());
        masked.push_str(before);
        rest = after;
        if let Some(range) = secret(rest) {
            masked.push_str(&rest[..range.start]);
            masked.push_str(MASK);
            rest = &rest[range.end..];
        }
    }
    masked.push_str(rest);
    Cow::Owned(masked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_bearer_tokens_are_masked() {
        for (input, expected) in [
            ("postgres://cogo:hunter2@db:5432/cogo", "postgres://cogo:***@db:5432/cogo"),
            ("a postgres://u:p@ss@h/x and http://k:v@h", "a postgres://u:***@h/x and http://k:***@h"),
            ("postgres://u:p/ss@h/x", "postgres://u:***@h/x"),
            ("Authorization: Bearer abc.def, next", "Authorization: Bearer ***, next"),
            ("http://host:4318/v1/traces mail a@b", "http://host:4318/v1/traces mail a@b"),
            ("nothing here", "nothing here"),
        ] {
            assert_eq!(redacted(input), expected);
        }
    }

    #[test]
    fn fields_are_secret_by_name() {
        for name in ["password", "db.password", "api_key", "Authorization", "access_token", "x-api_key"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["max_tokens", "gen_ai.usage.input_tokens", "tokens", "message", "secretary", "key"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
