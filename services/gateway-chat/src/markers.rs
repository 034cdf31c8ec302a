//! The `[n]` in a written answer: those that name no passage are dropped, the others are numbered anew.

/// An answer in which every `[n]` is the place of a passage in `used`, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) text: String,
    /// Numbers of the passages as the model was shown them, in the order of their first mention.
    pub(crate) used: Vec<usize>,
    /// Numbers that the model invented.
    pub(crate) invented: usize,
}

/// A range longer than this is a slip, not a list of sources.
const LONGEST_RANGE: usize = 20;

/// Checks the markers of an answer written from `passages` passages; code between backticks is left alone.
pub(crate) fn check(answer: &str, passages: usize) -> Checked {
    let mut checked = Checked { text: String::with_capacity(answer.len()), used: Vec::new(), invented: 0 };
    let mut rest = answer;
    while let Some(position) = rest.find(['[', '`']) {
        checked.text.push_str(&rest[..position]);
        rest = &rest[position..];
        let length = if rest.starts_with('`') {
            let code = code_length(rest);
            checked.text.push_str(&rest[..code]);
            code
        } else {
            checked.take_bracket(rest, passages)
        };
        rest = &rest[length..];
    }
    checked.text.push_str(rest);
    checked.text = checked.text.trim().to_owned();
    checked
}

impl Checked {
    /// Writes what the bracket at the start of `rest` becomes; answers how much of `rest` it was.
    fn take_bracket(&mut self, rest: &str, passages: usize) -> usize {
        let Some(numbers) = rest.find(']').and_then(|end| Some((end + 1, numbers(&rest[1..end])?))) else {
            self.text.push('[');
            return 1;
        };
        let (length, numbers) = numbers;
        let mut kept: Vec<usize> = Vec::new();
        for number in numbers {
            if !(1..=passages).contains(&number) {
                self.invented += 1;
                continue;
            }
            let known = self.used.iter().position(|used| *used == number);
            let place = known.unwrap_or_else(|| {
                self.used.push(number);
                self.used.len() - 1
            });
            if !kept.contains(&place) {
                kept.push(place);
            }
        }
        if kept.is_empty() {
            // the blank before the marker goes with it
            let end = self.text.trim_end_matches(' ').len();
            self.text.truncate(end);
        }
        for place in kept {
            self.text.push_str(&format!("[{}]", place + 1));
        }
        length
    }
}

/// Length of the code that starts here: up to the closing run of as many backticks, or to the end.
fn code_length(rest: &str) -> usize {
    let ticks = rest.len() - rest.trim_start_matches('`').len();
    let fence = &rest[..ticks];
    let mut from = ticks;
    while let Some(found) = rest[from..].find(fence) {
        let start = from + found;
        let run = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        if run == ticks {
            return start + run;
        }
        from = start + run;
    }
    // a lone backtick is no code
    if ticks < 3 { ticks } else { rest.len() }
}

/// `1`, `1, 2`, `1; 2`, `1-3` and `^1`; nothing for anything else in brackets.
fn numbers(inner: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in inner.split([',', ';']) {
        let part = part.trim().trim_start_matches('^');
        let parse = |text: &str| -> Option<usize> {
            let digits = text.trim();
            let is_number = (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { digits.parse().ok() } else { None }
        };
        match part.split_once(['-', '–']) {
            None => numbers.push(parse(part)?),
            Some((first, last)) => {
                let (first, last) = (parse(first)?, parse(last)?);
                let is_short = last >= first && last - first < LONGEST_RANGE;
                numbers.extend(if is_short { first..=last } else { first..=first });
            }
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::{Checked, check};

    fn check_text(answer: &str, passages: usize, text: &str, used: &[usize], invented: usize) {
        let expected = Checked { text: text.to_owned(), used: used.to_vec(), invented };
        assert_eq!(check(answer, passages), expected, "{answer}");
    }

    #[test]
    fn invented_numbers_are_dropped_and_the_rest_counts_from_one() {
        check_text("A [3]. B [9]. C [1][3].", 4, "A [1]. B. C [2][1].", &[3, 1], 1);
        check_text("A [0] and B [5].", 4, "A and B.", &[], 2);
        check_text("A [2, 9; 3].", 4, "A [1][2].", &[2, 3], 1);
        check_text("A [1-3] [^2].", 4, "A [1][2][3] [2].", &[1, 2, 3], 0);
        check_text("A [1][1].", 1, "A [1][1].", &[1], 0);
        check_text("A [99999999999999999999].", 1, "A [99999999999999999999].", &[], 0);
        check_text("A [1-900000000].", 2, "A [1].", &[1], 0);
    }

    #[test]
    fn brackets_that_are_no_markers_stay() {
        check_text("see [the docs](x) and [ and [a1]", 2, "see [the docs](x) and [ and [a1]", &[], 0);
        check_text("`list[9]` gives ``x[`1]`` [1]", 1, "`list[9]` gives ``x[`1]`` [1]", &[1], 0);
        check_text("```\nrow[7]\n``` [1]", 1, "```\nrow[7]\n``` [1]", &[1], 0);
        check_text("a ` lone tick [1] and ```open [2]", 2, "a ` lone tick [1] and ```open [2]", &[1], 0);
        check_text("ä[1]ö", 1, "ä[1]ö", &[1], 0);
    }
}
