//! A decision and everything that led to it, fit for a row that explains itself.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What was known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The desired count that was in force.
    pub current: u32,
    /// Workers of it that were ready.
    pub ready: u32,
    /// Messages that waited.
    pub queued: u64,
    /// How long the oldest of them had waited.
    pub oldest_age_ms: u64,
    /// Messages being worked on.
    pub in_flight: u64,
    /// Messages that ended per second.
    pub ended_per_s: f64,
    /// Messages that arrived per second, as ends and the change of the backlog tell.
    pub arrivals_per_s: f64,
    /// Time of work on one message, measured or by Little's law; the assumed one before anything is known.
    pub service_ms: f64,
}

/// What speaks for a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What arrives, by Little's law.
    Arrivals,
    /// What waits and is worked on, against the target load of a worker.
    Backlog,
    /// How long the oldest has waited, against the target.
    Age,
    /// What is worked on now keeps its workers.
    InFlight,
    /// What will arrive, if the forecast has been right before.
    Forecast,
}

impl Source {
    const fn word(self) -> &'static str {
        match self {
            Self::Arrivals => "arrivals",
            Self::Backlog => "the backlog",
            Self::Age => "the age of the oldest",
            Self::InFlight => "work under way",
            Self::Forecast => "the forecast",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

/// One voice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// What speaks.
    pub source: Source,
    /// The exact number of workers that the formula gives.
    pub exact: f64,
    /// The whole number for which it speaks, after the tolerance.
    pub wanted: u32,
    /// Whether it counts.
    pub counts: bool,
    /// The formula with its numbers, or why it does not count.
    pub why: String,
}

/// What kept the count from what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Limit {
    /// Not below the bound.
    Min {
        /// What was wanted.
        wanted: u32,
    },
    /// Not above the bound.
    Max {
        /// What was wanted.
        wanted: u32,
    },
    /// It has not been wanted for long enough.
    Hold {
        /// For how long it has.
        held_ms: u64,
        /// For how long it must.
        needed_ms: u64,
    },
    /// The last change is not long enough ago.
    CoolDown {
        /// How long it still takes.
        left_ms: u64,
    },
    /// More were wanted a moment ago, while the wish was watched; they are given.
    Lately {
        /// What was wanted at most.
        wanted: u32,
    },
    /// Not so many in one step.
    Step {
        /// What was wanted.
        wanted: u32,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min { wanted } => write!(formatter, "{wanted} would be below the least"),
            Self::Max { wanted } => write!(formatter, "{wanted} would be above the most"),
            Self::Hold { held_ms, needed_ms } => {
                write!(formatter, "it was wanted for {held_ms} ms of the {needed_ms} ms that it takes")
            }
            Self::CoolDown { left_ms } => write!(formatter, "the cool-down lasts another {left_ms} ms"),
            Self::Lately { wanted } => write!(formatter, "{wanted} were wanted at times while it was watched"),
            Self::Step { wanted } => write!(formatter, "{wanted} would be too many in one step"),
        }
    }
}

/// How many workers there shall be, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What was known.
    pub inputs: Inputs,
    /// Everything that spoke for a number.
    pub candidates: Vec<Candidate>,
    /// The greatest number that counts.
    pub wanted: u32,
    /// How many there shall be.
    pub desired: u32,
    /// What lies between the two.
    pub limits: Vec<Limit>,
    /// All of it in a sentence.
    pub sentence: String,
}

impl Decision {
    /// Whether the count changes.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        self.desired != self.inputs.current
    }

    pub(super) fn explain(&mut self) {
        let current = self.inputs.current;
        // of equals the first one
        let counting = self.candidates.iter().rev().filter(|candidate| candidate.counts);
        let loudest = counting.max_by_key(|candidate| candidate.wanted);
        let voice = loudest.map_or_else(
            || "nothing asks for any worker".to_owned(),
            |candidate| format!("{} because of {} ({})", candidate.wanted, candidate.source, candidate.why),
        );
        let limits: Vec<String> = self.limits.iter().map(Limit::to_string).collect();
        let but = if limits.is_empty() { String::new() } else { format!("; {}", limits.join(", ")) };
        let move_ = if self.is_change() {
            format!("From {current} to {}", self.desired)
        } else {
            format!("Stays at {current}")
        };
        self.sentence = format!("{move_}: {voice}{but}");
    }
}
