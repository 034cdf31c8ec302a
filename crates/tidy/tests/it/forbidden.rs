//! Words that must not stand in the code.

use cogo_tidy::{RustSource, members, read, root, without_test_items};

use crate::it::hold;

/// Not even in tests, each with what to do instead.
const NOWHERE: [(&str, &str); 7] = [
    ("#[ignore", "a test runs or is not there"),
    ("#[should_panic", "assert on what is returned"),
    ("todo!(", "write it or open an issue"),
    ("unimplemented!(", "write it or open an issue"),
    ("#[allow(", "expect it, with the reason"),
    ("#![allow(", "expect it, with the reason"),
    (" allow(", "expect it, with the reason"),
];

#[test]
fn forbidden_words_stand_nowhere() {
    let mut breaches = Vec::new();
    for member in members() {
        for file in member.rust_files("") {
            let source = RustSource::parse(&read(&file));
            for (word, instead) in NOWHERE {
                // A function may be called `allow`; only attributes are meant.
                let is_bare = word.starts_with(' ');
                for line in source.lines_with(word) {
                    let code = source.code.lines().nth(line - 1).unwrap();
                    if !is_bare || code.contains("cfg_attr(") {
                        breaches.push(format!("{}:{line}: {word}: {instead}", name_of(&file)));
                    }
                }
            }
        }
    }
    hold("a forbidden word", &breaches);
}

#[test]
fn expected_lints_have_a_reason() {
    let mut breaches = Vec::new();
    for member in members() {
        for file in member.rust_files("") {
            let source = RustSource::parse(&read(&file));
            for (position, _) in source.code.match_indices("[expect(") {
                let attribute = source.code[position..].split(']').next().unwrap();
                if !attribute.contains("reason") {
                    let line = source.code[..position].matches('\n').count() + 1;
                    breaches.push(format!("{}:{line}", name_of(&file)));
                }
            }
        }
    }
    hold("an expected lint has no reason", &breaches);
}

#[test]
fn production_code_does_not_unwrap() {
    let mut breaches = Vec::new();
    for member in members().into_iter().filter(|member| !member.is_dev_only()) {
        for file in member.production_files() {
            let source = RustSource::parse(&without_test_items(&read(&file)));
            for line in source.lines_with(".unwrap()") {
                breaches.push(format!("{}:{line}", name_of(&file)));
            }
        }
    }
    hold("`.unwrap()` in production code", &breaches);
}

fn name_of(path: &std::path::Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
