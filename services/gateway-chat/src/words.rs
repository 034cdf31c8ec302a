//! A question as words, in which quoted names stay whole and politeness is gone.

/// A word of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    /// As written, without quotes and punctuation around it.
    pub(crate) text: String,
    /// For comparing; empty for a quoted word, which is a name and never part of the phrase.
    pub(crate) lower: String,
}

impl Word {
    pub(crate) fn is_quoted(&self) -> bool {
        self.lower.is_empty()
    }
}

/// Words before the question itself.
const OPENING: [&str; 13] =
    ["please", "can", "could", "you", "tell", "show", "me", "hi", "hello", "hey", "so", "and", "now"];
/// Words that change nothing about what is asked.
const FILLING: [&str; 9] =
    ["directly", "exactly", "actually", "currently", "all", "please", "also", "really", "transitively"];
/// `in this repository` says nothing that is not known.
const WHERE: [&str; 6] = ["in", "inside", "within", "across", "of", "from"];
const DETERMINERS: [&str; 6] = ["this", "the", "our", "my", "whole", "entire"];
const WHOLE_TREE: [&str; 9] =
    ["repository", "repo", "project", "codebase", "code", "tree", "workspace", "base", "system"];

/// The words that say what is asked.
pub(crate) fn words(question: &str) -> Vec<Word> {
    let mut words = split(question);
    let opening = words.iter().take_while(|word| OPENING.contains(&word.lower.as_str())).count();
    words.drain(..opening);
    words.retain(|word| !FILLING.contains(&word.lower.as_str()));
    cut_tail(&mut words);
    words
}

fn split(question: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = question.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some((quoted, after)) = quoted(rest, first) {
            words.push(Word { text: quoted.to_owned(), lower: String::new() });
            rest = after.trim_start();
            continue;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        push_plain(&mut words, &rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
}

/// A name in quotes at the start of `rest`, and what follows it.
fn quoted(rest: &str, first: char) -> Option<(&str, &str)> {
    let closing = match first {
        '`' | '"' | '\'' => first,
        '“' => '”',
        '‘' => '’',
        _ => return None,
    };
    let inner = &rest[first.len_utf8()..];
    let end = inner.find(closing)?;
    let name = inner[..end].trim();
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    is_name.then(|| (name, &inner[end + closing.len_utf8()..]))
}

fn push_plain(words: &mut Vec<Word>, raw: &str) {
    let text = raw.trim_matches(['?', '!', ',', ';', '"', '“', '”', '`', '\'']).trim_end_matches(['.', ':']);
    let text = text.replace('’', "'");
    // `what's` asks like `what is`
    let (text, is) = text.strip_suffix("'s").map_or((text.as_str(), false), |text| (text, true));
    for part in [Some(text), is.then_some("is")].into_iter().flatten() {
        if part.chars().any(char::is_alphanumeric) {
            words.push(Word { text: part.to_owned(), lower: part.to_lowercase() });
        }
    }
}

/// Takes off `in this repository` and the like.
fn cut_tail(words: &mut Vec<Word>) {
    let is = |word: &Word, set: &[&str]| set.contains(&word.lower.as_str());
    let nouns = words.iter().rev().take_while(|word| is(word, &WHOLE_TREE)).count();
    if nouns == 0 {
        return;
    }
    let determiners = words.iter().rev().skip(nouns).take_while(|word| is(word, &DETERMINERS)).count();
    let Some(preposition) = words.len().checked_sub(nouns + determiners + 1) else { return };
    if is(&words[preposition], &WHERE) {
        words.truncate(preposition);
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    fn check(question: &str, expected: &[&str]) {
        let found: Vec<String> = words(question)
            .into_iter()
            .map(|word| if word.is_quoted() { format!("<{}>", word.text) } else { word.lower })
            .collect();
        assert_eq!(found, expected, "{question}");
    }

    #[test]
    fn names_stay_whole_and_politeness_goes() {
        check("Please tell me: who imports `bus_core::claim`?", &["who", "imports", "<bus_core::claim>"]);
        check("What's the impact of \"claim.rs\"?!", &["what", "is", "the", "impact", "of", "<claim.rs>"]);
        check("who uses src/claim.rs in this repository?", &["who", "uses", "src/claim.rs"]);
        check("Who uses the tree?", &["who", "uses", "the", "tree"]);
        check("who imports ‘Claim’ across our whole code base", &["who", "imports", "<Claim>"]);
    }

    #[test]
    fn unbalanced_quotes_and_odd_letters_are_words() {
        check("who imports `Claim", &["who", "imports", "claim"]);
        check("¿ \u{0} ' \" `` ?", &[]);
        check("don't 'a b' c", &["don't", "a", "b", "c"]);
    }
}
