//! Lines that repeat a question instead of answering it: lists of questions in tests, benchmarks and help texts.

use std::{borrow::Cow, collections::BTreeSet, ops::Range};

use crate::{search::tells, tokens::Tokenizer};

/// Words that a question starts with.
const OPENERS: [&str; 26] = [
    "are", "can", "could", "did", "do", "does", "explain", "had", "has", "have", "how", "is", "should", "was", "were",
    "what", "when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would",
];
/// Fewer words make a phrase that may well stand in an answer.
const FEWEST_WORDS: usize = 3;

/// A question as it was asked, to be known again where it is repeated.
pub(crate) struct Asked {
    /// All words in lower case; empty for what is no question, since an answer may well repeat a mere phrase.
    words: Vec<String>,
    terms: BTreeSet<String>,
}

impl Asked {
    pub(crate) fn of(tokenizer: &Tokenizer, question: &str) -> Self {
        let words: Vec<String> = words(question).map(|range| question[range].to_lowercase()).collect();
        let opens = words.first().is_some_and(|word| OPENERS.contains(&word.as_str()));
        let is_question = words.len() >= FEWEST_WORDS && (opens || question.trim_end().ends_with('?'));
        Self { words: if is_question { words } else { Vec::new() }, terms: telling_terms(tokenizer, question) }
    }

    /// The lines without what they repeat of the question. Of prose a heading is kept if text follows it, since that
    /// text is the answer to the heading.
    pub(crate) fn without_echo<'text>(
        &self,
        tokenizer: &Tokenizer,
        lines: &[&'text str],
        is_prose: bool,
    ) -> Vec<Cow<'text, str>> {
        let keeps = |row: usize| is_prose && is_heading(lines[row]) && has_text_below(&lines[row + 1..]);
        let strip = |(row, line): (usize, &&'text str)| {
            if keeps(row) { Cow::Borrowed(*line) } else { self.strip(tokenizer, line) }
        };
        lines.iter().enumerate().map(strip).collect()
    }

    fn strip<'line>(&self, tokenizer: &Tokenizer, line: &'line str) -> Cow<'line, str> {
        let echo = self.repetition(line).or_else(|| self.similar_question(tokenizer, line));
        match echo {
            Some(range) => Cow::Owned(format!("{} {}", &line[..range.start], &line[range.end..])),
            None => Cow::Borrowed(line),
        }
    }

    /// Where the line has all words of the question in a row.
    fn repetition(&self, line: &str) -> Option<Range<usize>> {
        let (first, length) = (self.words.first()?, self.words.len());
        let found: Vec<Range<usize>> = words(line).collect();
        let matching = found.windows(length).find(|run| {
            same_word(&line[run[0].clone()], first)
                && run.iter().zip(&self.words).all(|(range, word)| same_word(&line[range.clone()], word))
        })?;
        Some(matching[0].start..matching[length - 1].end)
    }

    /// Where the line asks a question mostly about the same things. A question states nothing, so nothing is lost.
    fn similar_question(&self, tokenizer: &Tokenizer, line: &str) -> Option<Range<usize>> {
        if self.words.is_empty() {
            return None;
        }
        let mut from = 0;
        for (mark, _) in line.match_indices('?') {
            let sentence = question_within(line, from..mark);
            from = mark + 1;
            let Some(sentence) = sentence else { continue };
            let terms = telling_terms(tokenizer, &line[sentence.clone()]);
            let shared = terms.intersection(&self.terms).count();
            if shared > 0 && shared * 2 >= terms.len() {
                return Some(sentence);
            }
        }
        None
    }
}

/// The question that ends where the range ends: from its last opening word that nothing but a mark stands before.
fn question_within(line: &str, range: Range<usize>) -> Option<Range<usize>> {
    let words: Vec<Range<usize>> =
        words(&line[range.clone()]).map(|word| range.start + word.start..range.start + word.end).collect();
    let opens = |word: &Range<usize>| {
        let before = line[..word.start].trim_end();
        let starts = !before.ends_with(|last: char| last.is_alphanumeric() || last == ',' || last == '_');
        let spaced = line[word.end..].starts_with([' ', '\'', '’']);
        starts && spaced && OPENERS.iter().any(|opener| same_word(&line[word.clone()], opener))
    };
    let first = words.iter().rposition(opens)?;
    (words.len() - first >= FEWEST_WORDS).then(|| words[first].start..range.end)
}

fn telling_terms(tokenizer: &Tokenizer, text: &str) -> BTreeSet<String> {
    tokenizer.words(text).into_iter().filter(tells).flat_map(|word| word.parts).collect()
}

/// Runs of letters, digits and `_`.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
        let start = rest + text[rest..].find(is_letter)?;
        let end = text[start..].find(|letter| !is_letter(letter)).map_or(text.len(), |length| start + length);
        rest = end;
        Some(start..end)
    })
}

fn same_word(word: &str, lower: &str) -> bool {
    word.chars().flat_map(char::to_lowercase).eq(lower.chars())
}

/// `## Title`, or a line in bold that stands as one.
fn is_heading(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('#') || (line.len() > 4 && line.starts_with("**") && line.ends_with("**"))
}

fn has_text_below(lines: &[&str]) -> bool {
    lines.iter().find(|line| !line.trim().is_empty()).is_some_and(|line| !is_heading(line))
}

#[cfg(test)]
mod tests {
    use super::{Asked, Tokenizer};

    const QUESTION: &str = "What happens to a message when its lease expires?";

    fn check(question: &str, line: &str, expected: &str) {
        let tokenizer = Tokenizer::default();
        let found = Asked::of(&tokenizer, question).strip(&tokenizer, line);
        assert_eq!(found, expected, "{question}");
    }

    #[test]
    fn repeated_question_is_taken_out_of_its_line() {
        check(
            QUESTION,
            "    (\"What happens to a message when its lease expires?\", \"a.sql\"),",
            "    (\" ?\", \"a.sql\"),",
        );
        check(QUESTION, "# what happens to a message, when its lease expires", "#  ");
        check(QUESTION, "ask \"What happens when a lease expires?\" --json", "ask \" ?\" --json");
        check(
            "how are import cycles found",
            "\"How are import cycles found?\" They are walked.",
            "\" ?\" They are walked.",
        );
    }

    #[test]
    fn answer_is_no_echo() {
        for line in [
            "A message whose lease has expired is queued again.",
            "let message = lease.expires(message)?;",
            "\"How is a budget kept when the lease of a sandbox expires after a restart?\"",
            "what happens to a message when its lease",
        ] {
            check(QUESTION, line, line);
        }
        check(
            "exponential backoff of retries",
            "/// Exponential backoff of retries.",
            "/// Exponential backoff of retries.",
        );
        check("what is Bus", "What is Bus", " ");
        check("Bus", "Bus", "Bus");
    }

    #[test]
    fn heading_with_text_below_is_kept() {
        let tokenizer = Tokenizer::default();
        let asked = Asked::of(&tokenizer, QUESTION);
        let heading = format!("## {QUESTION}");
        let kept = |lines: &[&str], is_prose| asked.without_echo(&tokenizer, lines, is_prose)[0] == heading;
        assert!(kept(&[&heading, "", "It is queued again."], true));
        assert!(!kept(&[&heading, "", "## Next", "Text."], true));
        assert!(!kept(&[&heading, "", "It is queued again."], false));
    }
}
