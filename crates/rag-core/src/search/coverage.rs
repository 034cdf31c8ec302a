//! How much of a question some lines speak about.

use super::QuestionWord;
use crate::tokens::Tokenizer;

/// Lines are compared by a set of bits, one per term.
const MAX_TERMS: usize = 64;
/// A part of an identifier found without the whole counts this much.
const PART_SHARE: f64 = 0.7;
/// Lines with a term after which further ones add less than half, as in BM25.
const SATURATION: f64 = 1.2;
/// A word in fewer than this share of the chunks is rare: it tells what the question is about.
const RARE_SHARE: f64 = 0.03;
/// A word counts as rare up to this many chunks, in collections so small that the share says nothing.
const RARE_CHUNKS: f64 = 4.0;
/// Rarer words weigh no more than one in this share of the chunks: one unusual word must not decide alone.
const HEAVIEST_SHARE: f64 = 0.004;

/// A word that the collection does not know is most likely what the question is about, so it weighs more than any.
const UNKNOWN_FACTOR: f64 = 1.4;

/// The question's words as bits with weights.
pub(crate) struct Terms {
    words: Vec<WeightedWord>,
    terms: Vec<String>,
}

struct WeightedWord {
    raw: String,
    weight: f64,
    joined: Option<u64>,
    parts: Vec<u64>,
    is_rare: bool,
    is_unknown: bool,
}

impl Terms {
    pub(crate) fn of(words: &[QuestionWord], chunk_count: u64) -> Self {
        let mut terms: Vec<String> = Vec::new();
        let mut bit = |term: &str| -> u64 {
            let known = terms.iter().position(|other| other == term);
            let index = known.unwrap_or_else(|| {
                terms.push(term.to_owned());
                terms.len() - 1
            });
            if index < MAX_TERMS { 1 << index } else { 0 }
        };
        let chunks = chunk_count as f64;
        let heaviest = (1.0 + 1.0 / HEAVIEST_SHARE).ln().min((1.0 + chunks).ln());
        let rare_df = (chunks * RARE_SHARE).max(RARE_CHUNKS);
        let weighted = words
            .iter()
            .map(|word| {
                let main = word.joined.iter().chain(&word.parts);
                let rarest_df = main.clone().map(|term| term.df).min().unwrap_or(0);
                let idf = main.clone().map(|term| term.idf).fold(0.0, f64::max);
                let is_unknown = main.clone().all(|term| term.df == 0);
                WeightedWord {
                    raw: word.raw.clone(),
                    weight: if is_unknown { heaviest * UNKNOWN_FACTOR } else { idf.min(heaviest) },
                    joined: word.joined.as_ref().map(|joined| bit(&joined.term)),
                    parts: word.parts.iter().map(|part| bit(&part.term)).collect(),
                    is_rare: rarest_df as f64 <= rare_df,
                    is_unknown,
                }
            })
            .collect();
        Self { words: weighted, terms }
    }

    /// The question's terms that occur in `text`.
    pub(crate) fn mask(&self, tokenizer: &Tokenizer, text: &str) -> u64 {
        let found = tokenizer.terms(text);
        let bits = found.iter().filter_map(|term| self.terms.iter().position(|other| other == term));
        bits.filter(|index| *index < MAX_TERMS).fold(0, |mask, index| mask | 1 << index)
    }

    /// Weight of the words in `mask` over the weight of the whole question, 0 to 1.
    pub(crate) fn coverage(&self, mask: u64) -> f64 {
        let total: f64 = self.words.iter().map(|word| word.weight).sum();
        let covered: f64 = self.words.iter().map(|word| word.weight * word.share(mask)).sum();
        if total > 0.0 { covered / total } else { 0.0 }
    }

    /// As [`Terms::coverage`], but terms that stand in several of the lines count more, though ever less so.
    pub(crate) fn strength(&self, lines: impl Iterator<Item = u64>) -> f64 {
        let mut counts = [0_u32; MAX_TERMS];
        for mask in lines {
            (0..self.terms.len().min(MAX_TERMS)).for_each(|bit| counts[bit] += u32::from(mask & 1 << bit != 0));
        }
        let strength_of = |term: &u64| {
            let count = f64::from(counts.get(term.trailing_zeros() as usize).copied().unwrap_or(0));
            count / (count + SATURATION)
        };
        let of_word = |word: &WeightedWord| {
            let parts = word.parts.iter().map(strength_of).sum::<f64>() / word.parts.len().max(1) as f64;
            word.weight * word.joined.as_ref().map_or(parts, |joined| strength_of(joined).max(parts * PART_SHARE))
        };
        self.words.iter().map(of_word).sum()
    }

    /// Whether the question has rare words and the collection knows none of them.
    pub(crate) fn is_about_the_unknown(&self) -> bool {
        let mut rare = self.words.iter().filter(|word| word.is_rare).peekable();
        rare.peek().is_some() && rare.all(|word| word.is_unknown)
    }

    pub(crate) fn knows_every_word(&self) -> bool {
        self.words.iter().all(|word| !word.is_unknown)
    }

    pub(crate) fn unknown_words(&self) -> Vec<String> {
        self.words.iter().filter(|word| word.is_unknown).map(|word| word.raw.clone()).collect()
    }
}

impl WeightedWord {
    fn share(&self, mask: u64) -> f64 {
        if self.joined.is_some_and(|joined| mask & joined != 0) {
            return 1.0;
        }
        let found = self.parts.iter().filter(|part| mask & **part != 0).count() as f64;
        let share = found / self.parts.len().max(1) as f64;
        if self.joined.is_some() { share * PART_SHARE } else { share }
    }
}
