//! Every file says what it is for and stays short.

use std::path::Path;

use cogo_tidy::{Kind, members, read, root, without_test_items};

use crate::it::hold;

const MOST_PRODUCTION_LINES: usize = 400;
const MOST_LINES_OF_A_SERVICES_MAIN: usize = 40;

fn name_of(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Lines without those of tests and without the empty ones that the tests leave at the end.
fn production_lines(text: &str) -> usize {
    without_test_items(text).trim_end().lines().count()
}

#[test]
fn every_rust_file_opens_with_its_purpose() {
    let mut breaches = Vec::new();
    for member in members() {
        for file in member.rust_files("") {
            if !read(&file).starts_with("//! ") {
                breaches.push(name_of(&file));
            }
        }
    }
    hold("the first line is not a `//!` sentence", &breaches);
}

#[test]
fn production_files_stay_short() {
    let mut breaches = Vec::new();
    for member in members() {
        for file in member.production_files() {
            let lines = production_lines(&read(&file));
            if lines > MOST_PRODUCTION_LINES {
                breaches.push(format!("{} has {lines}", name_of(&file)));
            }
        }
    }
    hold(&format!("a file has more than {MOST_PRODUCTION_LINES} production lines"), &breaches);
}

#[test]
fn main_of_a_service_only_wires() {
    let mut breaches = Vec::new();
    for member in members().into_iter().filter(|member| member.kind == Kind::Service) {
        let main = member.path.join("src/main.rs");
        if !main.is_file() || !member.path.join("src/lib.rs").is_file() {
            breaches.push(format!("{} is not a library with a main.rs", member.place()));
            continue;
        }
        let lines = read(&main).lines().count();
        if lines > MOST_LINES_OF_A_SERVICES_MAIN {
            breaches.push(format!("{} has {lines} lines", name_of(&main)));
        }
    }
    hold(&format!("a service's main.rs is missing or longer than {MOST_LINES_OF_A_SERVICES_MAIN} lines"), &breaches);
}

#[test]
fn tests_do_not_count_as_production_lines() {
    assert_eq!(production_lines("a\nb\n\n#[cfg(test)]\nmod tests {\n    c\n}\n"), 2);
}
