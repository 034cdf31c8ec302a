//! What a failed attempt leads to: kinds of errors, whether and when they are tried again, and when to give up.

mod deferral;
mod rule;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use cogo_bus_core::{Attempt, Bus, Failure};
use tracing::warn;

use crate::{Claim, HandlerError, patience::in_time};

pub(crate) use deferral::Deferral;
pub(crate) use rule::RetryRule;

/// Kind of the error of a handler that panicked.
pub const PANIC: &str = "panic";
/// Kind of the error of a message to which a batch handler gave no outcome.
pub const UNANSWERED: &str = "unanswered";
/// How the reason of a panic begins.
const PANICKED: &str = "handler panicked";
/// How `bus.attempts` calls an attempt that its handler ended with an error.
const FAILED: &str = "failed";
/// First and longest pause of an exponential backoff that names none, as those of the bus.
const USUAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Doublings after which every pause has reached its cap.
const DOUBLINGS: u32 = 31;

/// How much of a pause is left to chance, so that those that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Nothing.
    None,
    /// The upper half: between half the pause and all of it.
    Half,
    /// Everything: between nothing and the pause.
    #[default]
    Full,
}

/// How long an error is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backoff {
    /// As `bus.fail` does of itself: from 1 s, doubled with each attempt of the message up to 5 min, with jitter.
    #[default]
    Bus,
    /// Always the same.
    Fixed(Duration),
    /// Doubled with each attempt that ended by this kind of error.
    Exponential {
        /// The first pause.
        base: Duration,
        /// The longest pause.
        cap: Duration,
        /// What is left to chance.
        jitter: Jitter,
    },
}

/// What errors of one kind lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    retriable: bool,
    backoff: Backoff,
    most: Option<u16>,
}

impl Default for Retry {
    fn default() -> Self {
        Self::by_the_bus()
    }
}

impl Retry {
    /// Another attempt, when the bus says.
    #[must_use]
    pub const fn by_the_bus() -> Self {
        Self { retriable: true, backoff: Backoff::Bus, most: None }
    }

    /// A dead letter at once.
    #[must_use]
    pub const fn never() -> Self {
        Self { retriable: false, ..Self::by_the_bus() }
    }

    /// Another attempt after a fixed delay.
    #[must_use]
    pub const fn after(delay: Duration) -> Self {
        Self { backoff: Backoff::Fixed(delay), ..Self::by_the_bus() }
    }

    /// Another attempt after a pause that doubles from `base` up to `cap`, with full jitter.
    #[must_use]
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { backoff: Backoff::Exponential { base, cap, jitter: Jitter::Full }, ..Self::by_the_bus() }
    }

    /// With another jitter; only an exponential backoff has one.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        if let Backoff::Exponential { base, cap, .. } = self.backoff {
            self.backoff = Backoff::Exponential { base, cap, jitter };
        }
        self
    }

    /// A dead letter at the `most`th attempt that ends by this kind of error. The message's own `max_attempts`, which
    /// counts all of its attempts, bounds it all the same.
    #[must_use]
    pub const fn at_most(mut self, most: u16) -> Self {
        self.most = Some(most);
        self
    }

    fn needs_count(&self) -> bool {
        self.retriable && (self.most.is_some() || matches!(self.backoff, Backoff::Exponential { .. }))
    }

    /// The pause after the `count`th attempt that ended so; none if the bus shall say. `chance` is 0 to 1.
    fn pause(&self, count: u32, chance: f64) -> Option<Duration> {
        match self.backoff {
            Backoff::Bus => None,
            Backoff::Fixed(delay) => Some(delay),
            Backoff::Exponential { base, cap, jitter } => {
                let doublings = count.saturating_sub(1).min(DOUBLINGS);
                let whole = base.saturating_mul(1 << doublings).min(cap);
                Some(match jitter {
                    Jitter::None => whole,
                    Jitter::Half => whole.mul_f64(0.5 + chance / 2.0),
                    Jitter::Full => whole.mul_f64(chance),
                })
            }
        }
    }
}

/// What the errors of a route lead to, by their kinds.
///
/// A handler names the kind with [`HandlerError::of_kind`]; an error without one, and of a kind that the policy does not
/// know, is for [`RetryPolicy::otherwise`]. An error that says when to try again ([`HandlerError::after`]) is heard before
/// any backoff. The kind opens the reason that stands in the message, its history and its dead letter.
///
/// ```
/// use std::time::Duration;
/// use cogo_service_runtime::{PANIC, Retry, RetryPolicy};
///
/// let policy = RetryPolicy::default()
///     .on("rate-limited", Retry::exponential(Duration::from_secs(5), Duration::from_secs(600)))
///     .on("upstream", Retry::after(Duration::from_secs(2)).at_most(5))
///     .on("bad-input", Retry::never())
///     .on(PANIC, Retry::by_the_bus().at_most(2));
/// # let _ = policy;
/// ```
///
/// Operators change it without a build by the setting `retry_rules`, a list whose entries are
/// `[<service>/<role>/]<kind>: <words>`; kind `*` is what no other rule knows. The words: `dead-letter`, `retry`, `bus` (its
/// backoff), `delay=10s`, `base=1s`, `cap=5m`, `jitter=none|half|full`, `max=5`. What an entry does not name stays as the
/// code declares it.
///
/// ```toml
/// retry_rules = ["rate-limited: base=10s cap=30m", "upstream: max=20", "*: max=3"]
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryPolicy {
    kinds: BTreeMap<Cow<'static, str>, Retry>,
    other: Retry,
}

impl RetryPolicy {
    /// Says what errors of this kind lead to.
    #[must_use]
    pub fn on(mut self, kind: &'static str, retry: Retry) -> Self {
        self.kinds.insert(Cow::Borrowed(kind), retry);
        self
    }

    /// Says what all other errors lead to.
    #[must_use]
    pub fn otherwise(mut self, retry: Retry) -> Self {
        self.other = retry;
        self
    }

    fn retry(&self, kind: Option<&str>) -> &Retry {
        kind.and_then(|kind| self.kinds.get(kind)).unwrap_or(&self.other)
    }

    /// Decides what a failed attempt leads to.
    pub(crate) async fn judge(&self, bus: &Bus, patience: Duration, claim: &Claim, fault: Fault) -> Failure {
        let retry = self.retry(fault.kind);
        let reason = fault.reason();
        if fault.is_final || !retry.retriable {
            return Failure { reason, retriable: false, retry_after: None };
        }
        let before = if retry.needs_count() && claim.attempt() > 1 {
            match in_time(patience, bus.history(claim.id())).await {
                Ok(history) => fault.count_in(&history),
                Err(error) => {
                    // the message's own number of attempts bounds it all the same
                    warn!(%error, "attempts not counted, taking this error for the first of its kind");
                    0
                }
            }
        } else {
            0
        };
        let count = before.saturating_add(1);
        if retry.most.is_some_and(|most| count >= u32::from(most)) {
            let kind = fault.kind.unwrap_or("an error");
            let reason = format!("{reason} (given up: {count} attempts ended by {kind})");
            return Failure { reason, retriable: false, retry_after: None };
        }
        Failure { reason, retriable: true, retry_after: fault.after.or_else(|| retry.pause(count, chance())) }
    }
}

/// An error of a handler, in a form that can stand for each message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: Option<&'static str>,
    after: Option<Duration>,
    text: String,
    is_final: bool,
    /// It was not even tried.
    is_deferred: bool,
}

impl Fault {
    pub(crate) fn panic(text: &str) -> Self {
        Self { kind: Some(PANIC), after: None, text: text.to_owned(), is_final: false, is_deferred: false }
    }

    /// How the reason of an error of this kind begins.
    fn opening(kind: &str) -> String {
        format!("{}: ", if kind == PANIC { PANICKED } else { kind })
    }

    fn reason(&self) -> String {
        let opening = self.kind.map(Self::opening).unwrap_or_default();
        format!("{opening}{}", self.text)
    }

    /// How many earlier attempts ended by an error of this kind; of any kind, if this one has none.
    fn count_in(&self, history: &[Attempt]) -> u32 {
        let opening = self.kind.map(Self::opening).unwrap_or_default();
        let alike = history.iter().filter(|attempt| {
            attempt.outcome == FAILED && attempt.error.as_deref().is_some_and(|error| error.starts_with(&opening))
        });
        u32::try_from(alike.count()).unwrap_or(u32::MAX)
    }
}

impl From<HandlerError> for Fault {
    fn from(error: HandlerError) -> Self {
        let is_final = matches!(error, HandlerError::Reject { .. });
        let is_deferred = matches!(error, HandlerError::Deferred { .. });
        let (kind, after, source) = match error {
            HandlerError::Retry { after, source } => (None, after, source),
            HandlerError::OfKind { kind, after, source } => (Some(kind), after, source),
            HandlerError::Deferred { after, source } => (None, Some(after), source),
            HandlerError::Reject { source } => (None, None, source),
        };
        Self { kind, after, text: format!("{source:#}"), is_final, is_deferred }
    }
}

impl From<Fault> for HandlerError {
    fn from(fault: Fault) -> Self {
        let Fault { kind, after, text, is_final, is_deferred } = fault;
        let source = anyhow::Error::msg(text);
        match kind {
            _ if is_final => Self::Reject { source },
            _ if is_deferred => Self::Deferred { after: after.unwrap_or_default(), source },
            Some(kind) => Self::OfKind { kind, after, source },
            None => Self::Retry { after, source },
        }
    }
}

/// A number of 0 to 1 that nobody foresees; each hasher of the standard library has keys of its own.
fn chance() -> f64 {
    let drawn = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(drawn).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_cap() {
        let retry = Retry::exponential(SECOND, 10 * SECOND).with_jitter(Jitter::None);
        let pauses: Vec<u64> = (1..=6).map(|count| retry.pause(count, 0.3).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert_eq!(retry.pause(u32::MAX, 0.3), Some(10 * SECOND));
        assert_eq!(Retry::after(SECOND).pause(7, 0.3), Some(SECOND));
        assert_eq!(Retry::by_the_bus().pause(7, 0.3), None);
    }

    #[test]
    fn jitter_leaves_as_much_to_chance_as_it_says() {
        for (jitter, least) in [(Jitter::None, 8.0), (Jitter::Half, 4.0), (Jitter::Full, 0.0)] {
            let retry = Retry::exponential(8 * SECOND, 8 * SECOND).with_jitter(jitter);
            let bounds = [0.0, 1.0].map(|chance| retry.pause(1, chance).unwrap().as_secs_f64());
            assert_eq!(bounds, [least, 8.0], "{jitter:?}");
        }
        let drawn: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(drawn.iter().all(|drawn| (0.0..=1.0).contains(drawn)));
        assert!(drawn.iter().any(|drawn| *drawn < 0.5) && drawn.iter().any(|drawn| *drawn > 0.5), "{drawn:?}");
    }

    #[test]
    fn fault_becomes_the_error_that_it_was() {
        for error in [
            HandlerError::retry(anyhow::anyhow!("a").context("b")),
            HandlerError::rejected("c"),
            HandlerError::of_kind("d", anyhow::anyhow!("e")).after(SECOND),
            HandlerError::deferred(SECOND, anyhow::anyhow!("f")),
        ] {
            let fault = Fault::from(error);
            assert_eq!(Fault::from(HandlerError::from(fault.clone())), fault);
        }
    }
}
