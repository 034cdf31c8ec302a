//! A small language for phrases: `who|what imports? T` is alternatives, an optional word and a name.

use crate::words::Word;

/// Nouns that may stand beside a name: `the struct Claim`, `the claim module`.
const KINDS: [&str; 26] = [
    "function",
    "method",
    "struct",
    "class",
    "type",
    "trait",
    "enum",
    "interface",
    "constant",
    "module",
    "file",
    "crate",
    "package",
    "library",
    "macro",
    "symbol",
    "component",
    "variable",
    "dependency",
    "service",
    "script",
    "test",
    "field",
    "directory",
    "folder",
    "definition",
];
/// Words that are never a name unless they are quoted.
const NO_NAMES: [&str; 36] = [
    "a",
    "an",
    "the",
    "this",
    "that",
    "these",
    "those",
    "it",
    "its",
    "them",
    "they",
    "i",
    "we",
    "you",
    "he",
    "she",
    "something",
    "anything",
    "everything",
    "nothing",
    "someone",
    "anyone",
    "what",
    "who",
    "which",
    "where",
    "how",
    "why",
    "when",
    "is",
    "are",
    "of",
    "to",
    "in",
    "by",
    "on",
];

/// Words that mean the same in a phrase, by their name after `@`.
fn set(name: &str) -> &'static [&'static str] {
    match name {
        "ask" => &["show", "list", "find", "get", "give", "name", "enumerate"],
        "who" => &["who", "what", "whoever", "whatever", "everything", "everyone", "anything", "anyone", "anybody"],
        "things" => &[
            "files",
            "file",
            "modules",
            "module",
            "code",
            "crates",
            "crate",
            "packages",
            "package",
            "classes",
            "class",
            "functions",
            "services",
            "parts",
            "places",
            "components",
            "else",
            "things",
            "libraries",
        ],
        "use" => &[
            "imports",
            "import",
            "uses",
            "use",
            "using",
            "importing",
            "depends",
            "depend",
            "depending",
            "relies",
            "rely",
            "relying",
            "requires",
            "require",
            "requiring",
            "references",
            "reference",
            "referencing",
            "consumes",
            "consume",
            "pulls",
        ],
        "used" => &["used", "imported", "referenced", "required", "consumed"],
        "person" => &["i", "we", "you", "someone", "somebody", "one", "anyone"],
        "modal" => &["would", "could", "will", "might", "may", "can", "does", "do", "should", "must"],
        "be" => &["is", "are", "be", "was", "were", "get", "gets", "been"],
        "broken" => &[
            "break", "breaks", "broken", "breaking", "fail", "fails", "affect", "affects", "affected", "impact",
            "impacts", "impacted", "happens", "happen", "stops", "stop", "change", "changes", "touched", "suffers",
        ],
        "change" => &[
            "change",
            "changes",
            "changed",
            "modify",
            "modified",
            "edit",
            "edited",
            "rename",
            "renamed",
            "remove",
            "removed",
            "delete",
            "deleted",
            "break",
            "breaks",
            "broken",
            "move",
            "moved",
            "refactor",
            "refactored",
            "replace",
            "replaced",
            "disappears",
            "update",
            "updated",
            "touch",
            "touched",
        ],
        "changing" => &[
            "changing",
            "modifying",
            "editing",
            "renaming",
            "removing",
            "deleting",
            "breaking",
            "moving",
            "refactoring",
            "replacing",
            "updating",
            "touching",
        ],
        "impact" => &["impact", "effect", "effects", "consequences", "consequence", "radius", "influence"],
        other => unreachable!("patterns name only sets of this list, not {other}"),
    }
}

/// The name at the place of `T`, if the phrase fits from the first word to the last.
pub(crate) fn name_in(pattern: &str, words: &[Word]) -> Option<String> {
    let slots: Vec<&str> = pattern.split(' ').collect();
    fit(&slots, words, None)
}

fn fit(slots: &[&str], words: &[Word], name: Option<&str>) -> Option<String> {
    let Some((slot, further)) = slots.split_first() else {
        return if words.is_empty() { name.map(str::to_owned) } else { None };
    };
    if *slot == "T" {
        return names(words).into_iter().find_map(|(found, rest)| fit(further, rest, Some(found)));
    }
    let (alternatives, optional) = slot.strip_suffix('?').map_or((*slot, false), |slot| (slot, true));
    let taken = words.split_first().filter(|(word, _)| !word.is_quoted() && means(alternatives, &word.lower));
    let with = taken.and_then(|(_, rest)| fit(further, rest, name));
    if with.is_none() && optional { fit(further, words, name) } else { with }
}

fn means(alternatives: &str, word: &str) -> bool {
    alternatives.split('|').any(|alternative| match alternative.strip_prefix('@') {
        Some(name) => set(name).contains(&word),
        None => alternative == word,
    })
}

/// Ways to read a name at the start of the words: with determiner and kind before it, or a kind after it.
fn names(words: &[Word]) -> Vec<(&str, &[Word])> {
    let mut readings = Vec::new();
    let mut start = words;
    for skippable in [&["the", "this", "our", "that"][..], &KINDS[..], &["called", "named"][..]] {
        read_name(start, &mut readings);
        match start.split_first() {
            Some((word, rest)) if skippable.contains(&word.lower.as_str()) => start = rest,
            _ => {}
        }
    }
    read_name(start, &mut readings);
    readings
}

fn read_name<'words>(words: &'words [Word], readings: &mut Vec<(&'words str, &'words [Word])>) {
    let Some((word, rest)) = words.split_first() else { return };
    if !is_name(word) {
        return;
    }
    if let Some((kind, after)) = rest.split_first()
        && KINDS.contains(&kind.lower.as_str())
    {
        readings.push((&word.text, after));
    }
    readings.push((&word.text, rest));
}

fn is_name(word: &Word) -> bool {
    if word.is_quoted() {
        return true;
    }
    let legal = |letter: char| letter.is_alphanumeric() || "_-./:#@$*<>()~\\".contains(letter);
    word.text.chars().all(legal) && !NO_NAMES.contains(&word.lower.as_str()) && !KINDS.contains(&word.lower.as_str())
}
