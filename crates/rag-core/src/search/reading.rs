//! What the lines of a candidate say, where ranking by counted words alone would be misled.

use std::borrow::Cow;

use super::{candidates::Candidate, coverage::Terms};
use crate::{echo::Asked, sentences::told, tokens::Tokenizer};

/// What reading a candidate adds to its counted words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Share of the overlap that is left once lines that repeat the question are taken out, 0 to 1.
    pub(super) own: f64,
    /// Share of the question that its sentences cover: prose and comments, not statements, 0 to 1.
    pub(super) told: f64,
    /// Share of the question that all of it covers, names and path included, 0 to 1.
    pub(super) covered: f64,
}

/// Reads candidates of one question.
pub(super) struct Reader<'call> {
    pub(super) tokenizer: &'call Tokenizer,
    pub(super) asked: Asked,
    pub(super) terms: Terms,
}

impl Reader<'_> {
    pub(super) fn read(&self, candidate: &Candidate, text: &str) -> Reading {
        let lines: Vec<&str> = text.lines().collect();
        let is_prose = candidate.is_prose();
        let without_echo = self.asked.without_echo(self.tokenizer, &lines, is_prose);
        let masks: Vec<u64> = without_echo.iter().map(|line| self.mask(line)).collect();
        let told = told(&without_echo).into_iter().zip(&masks).filter(|(told, _)| is_prose || *told);
        let told = told.fold(0, |all, (_, mask)| all | mask);
        let around = self.around(candidate);
        let covered = masks.iter().chain(&around).fold(0, |all, mask| all | mask);
        let has_echo = without_echo.iter().any(|line| matches!(line, Cow::Owned(_)));
        let own = if has_echo { self.own(&around, &lines, &masks) } else { 1.0 };
        Reading { own, told: self.terms.coverage(told), covered: self.terms.coverage(covered) }
    }

    fn own(&self, around: &[u64], lines: &[&str], without_echo: &[u64]) -> f64 {
        let with_echo = lines.iter().map(|line| self.mask(line));
        let all = self.terms.strength(around.iter().copied().chain(with_echo));
        let rest = self.terms.strength(around.iter().chain(without_echo).copied());
        if all > 0.0 { (rest / all).min(1.0) } else { 1.0 }
    }

    /// What the names around the lines cover.
    fn around(&self, candidate: &Candidate) -> [u64; 2] {
        let name = candidate.qualified_name.as_deref().or(candidate.heading.as_deref()).unwrap_or("");
        [self.mask(name), self.mask(&candidate.path)]
    }

    fn mask(&self, line: &str) -> u64 {
        self.terms.mask(self.tokenizer, line)
    }
}
