//! Nothing that is committed names a directory of a developer's machine.

use cogo_tidy::text_files;

use crate::it::hold;

/// Put together here, so that this file does not break its own rule.
const FOREIGN: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/var/tmp/", "cogo-")];

/// Directories of images that stand in the Dockerfiles of many projects.
const NOT_A_DEVELOPERS: [&str; 1] = [concat!("/ho", "me/nonroot")];

fn names_a_machine(line: &str) -> bool {
    FOREIGN.iter().any(|foreign| {
        line.match_indices(foreign).any(|(position, _)| {
            let before = line[..position].chars().next_back();
            // Within a word or an address it is not an absolute path.
            let begins_a_path =
                before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '-' | '_' | '/' | '}'));
            begins_a_path && !NOT_A_DEVELOPERS.iter().any(|known| line[position..].starts_with(known))
        })
    })
}

#[test]
fn no_file_names_a_machine() {
    let mut breaches = Vec::new();
    for (name, text) in text_files() {
        for (index, line) in text.lines().enumerate() {
            if names_a_machine(line) {
                breaches.push(format!("{name}:{}", index + 1));
            }
        }
    }
    hold("a committed file names a path of a developer's machine", &breaches);
}

#[test]
fn paths_are_told_from_addresses_and_words() {
    let [first, ..] = FOREIGN;
    assert!(names_a_machine(first));
    assert!(names_a_machine(&format!("cd \"{first}main\"")));
    assert!(!names_a_machine(&format!("https://example.org{first}main")));
    assert!(!names_a_machine(&format!("rest{first}sleep")));
}
