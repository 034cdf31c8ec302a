//! Retry policies as operators write them, in the setting `retry_rules`.

use std::{borrow::Cow, time::Duration};

use cogo_contracts::Route;

use super::{Backoff, Jitter, Retry, RetryPolicy, USUAL};

/// Stands for every kind that no other rule knows.
const ANY: &str = "*";
/// Longest pause that may be asked for.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// One entry of the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryRule {
    /// Service and role; none: every route of the process.
    route: Option<(String, String)>,
    kind: String,
    words: Vec<Word>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    DeadLetter,
    Retry,
    Bus,
    Delay(Duration),
    Base(Duration),
    Cap(Duration),
    Jitter(Jitter),
    Max(u16),
}

impl RetryRule {
    /// Reads the entries of the setting.
    ///
    /// # Errors
    /// The entry that cannot be used, and why.
    pub(crate) fn parse_all(entries: &[String]) -> Result<Vec<Self>, String> {
        let parse = |entry: &String| Self::parse(entry).map_err(|fault| format!("retry_rules: {entry:?}: {fault}"));
        entries.iter().map(parse).collect()
    }

    fn parse(entry: &str) -> Result<Self, String> {
        let (head, words) =
            entry.split_once(':').ok_or("it must be `<kind>: <words>` or `<service>/<role>/<kind>: <words>`")?;
        let (route, kind) = match head.trim().split('/').collect::<Vec<_>>().as_slice() {
            [kind] => (None, (*kind).to_owned()),
            [service, role, kind] => (Some(((*service).to_owned(), (*role).to_owned())), (*kind).to_owned()),
            _ => return Err("before the colon stands `<kind>` or `<service>/<role>/<kind>`".to_owned()),
        };
        if kind.is_empty() || kind.contains(char::is_whitespace) {
            return Err("the kind is a name without spaces, or `*`".to_owned());
        }
        let words: Vec<Word> = words.split_whitespace().map(Word::parse).collect::<Result<_, _>>()?;
        if words.is_empty() {
            return Err("it says nothing".to_owned());
        }
        Ok(Self { route, kind, words })
    }

    fn is_for(&self, route: &Route) -> bool {
        self.route.as_ref().is_none_or(|(service, role)| service == route.service() && role == route.role())
    }
}

impl RetryPolicy {
    /// With what operators say about this route; later entries are heard last.
    #[must_use]
    pub(crate) fn changed_by(mut self, rules: &[RetryRule], route: &Route) -> Self {
        for rule in rules.iter().filter(|rule| rule.is_for(route)) {
            if rule.kind == ANY {
                self.other = changed(self.other, &rule.words);
            } else {
                let declared = *self.retry(Some(&rule.kind));
                self.kinds.insert(Cow::Owned(rule.kind.clone()), changed(declared, &rule.words));
            }
        }
        self
    }

    /// Kinds that operators name and the code does not: perhaps misspelt.
    pub(crate) fn strange_kinds<'a>(&self, rules: &'a [RetryRule], route: &Route) -> Vec<&'a str> {
        let strange = rules
            .iter()
            .filter(|rule| rule.is_for(route) && rule.kind != ANY && !self.kinds.contains_key(rule.kind.as_str()));
        strange.map(|rule| rule.kind.as_str()).collect()
    }
}

fn changed(mut retry: Retry, words: &[Word]) -> Retry {
    for word in words {
        let (base, cap, jitter) = match retry.backoff {
            Backoff::Exponential { base, cap, jitter } => (base, cap, jitter),
            Backoff::Bus | Backoff::Fixed(_) => (USUAL.0, USUAL.1, Jitter::default()),
        };
        match *word {
            Word::DeadLetter => retry.retriable = false,
            Word::Retry => retry.retriable = true,
            Word::Bus => retry.backoff = Backoff::Bus,
            Word::Delay(delay) => retry.backoff = Backoff::Fixed(delay),
            Word::Base(base) => retry.backoff = Backoff::Exponential { base, cap, jitter },
            Word::Cap(cap) => retry.backoff = Backoff::Exponential { base, cap, jitter },
            Word::Jitter(jitter) => retry.backoff = Backoff::Exponential { base, cap, jitter },
            Word::Max(most) => retry.most = Some(most),
        }
    }
    retry
}

impl Word {
    fn parse(word: &str) -> Result<Self, String> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        Ok(match (name, value) {
            ("dead-letter", "") => Self::DeadLetter,
            ("retry", "") => Self::Retry,
            ("bus", "") => Self::Bus,
            ("delay", value) => Self::Delay(duration(value)?),
            ("base", value) => Self::Base(duration(value)?),
            ("cap", value) => Self::Cap(duration(value)?),
            ("jitter", "none") => Self::Jitter(Jitter::None),
            ("jitter", "half") => Self::Jitter(Jitter::Half),
            ("jitter", "full") => Self::Jitter(Jitter::Full),
            ("max", value) => match value.parse() {
                Ok(most) if most > 0 => Self::Max(most),
                _ => return Err(format!("max is 1 to {}, not {value:?}", u16::MAX)),
            },
            _ => {
                let known = "dead-letter, retry, bus, delay=, base=, cap=, jitter=none|half|full, max=";
                return Err(format!("{word:?} is none of {known}"));
            }
        })
    }
}

/// A whole number and `ms`, `s`, `m` or `h`.
fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let ms_each = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let ms = ms_each.and_then(|each: u64| number.parse::<u64>().ok()?.checked_mul(each));
    let duration = ms.map(Duration::from_millis).filter(|duration| *duration <= LONGEST);
    duration.ok_or_else(|| format!("{text:?} is no time like 500ms, 10s, 5m or 2h of at most 30 days"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route = Route::constant("rag", "embed");

    fn rules(entries: &[&str]) -> Result<Vec<RetryRule>, String> {
        RetryRule::parse_all(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    fn declared() -> RetryPolicy {
        let limited = Retry::exponential(Duration::from_secs(5), Duration::from_secs(60)).at_most(4);
        RetryPolicy::default().on("limited", limited).on("bad", Retry::never())
    }

    #[test]
    fn rule_changes_what_it_names_and_keeps_the_rest() {
        let check = |entries: &[&str], kind: Option<&str>, expected: Retry| {
            let policy = declared().changed_by(&rules(entries).unwrap(), &ROUTE);
            assert_eq!(*policy.retry(kind), expected, "{entries:?}");
        };
        let s = Duration::from_secs;
        check(&["limited: cap=2m"], Some("limited"), Retry::exponential(s(5), s(120)).at_most(4));
        check(&["limited: max=9", "limited: base=500ms jitter=half"], Some("limited"), {
            Retry::exponential(Duration::from_millis(500), s(60)).with_jitter(Jitter::Half).at_most(9)
        });
        check(&["limited: delay=1h"], Some("limited"), Retry::after(s(3600)).at_most(4));
        check(&["bad: retry"], Some("bad"), Retry::by_the_bus());
        check(&["*: dead-letter"], None, Retry::never());
        check(&["*: dead-letter"], Some("unheard of"), Retry::never());
        check(&["*: dead-letter"], Some("limited"), Retry::exponential(s(5), s(60)).at_most(4));
        check(&["new: base=3s"], Some("new"), Retry::exponential(s(3), USUAL.1));
        check(&["limited: bus"], Some("limited"), Retry::by_the_bus().at_most(4));
    }

    #[test]
    fn rule_of_a_route_is_for_no_other() {
        let of_this = rules(&["rag/embed/limited: dead-letter"]).unwrap();
        let of_that = rules(&["kg/build/limited: dead-letter"]).unwrap();
        assert!(!declared().changed_by(&of_this, &ROUTE).retry(Some("limited")).retriable);
        assert_eq!(declared().changed_by(&of_that, &ROUTE), declared());
        assert_eq!(declared().strange_kinds(&rules(&["limitde: max=2", "*: max=3"]).unwrap(), &ROUTE), ["limitde"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (entry, fault) in [
            ("limited", "it must be"),
            ("limited:", "says nothing"),
            ("a/b: retry", "before the colon"),
            (": retry", "the kind is"),
            ("x: soon", "none of"),
            ("x: max=0", "max is"),
            ("x: max=-1", "max is"),
            ("x: delay=5", "no time"),
            ("x: delay=99999999999999999999s", "no time"),
            ("x: delay=31d", "no time"),
            ("x: jitter=some", "none of"),
        ] {
            let told = rules(&[entry]).unwrap_err();
            assert!(told.contains(fault) && told.contains("retry_rules"), "{told}");
        }
    }
}
