//! The examples stay as short as they are said to be.

use std::fs;

use super::language::examples;

#[test]
fn no_source_of_the_example_workers_has_more_than_60_lines_or_a_line_of_more_than_120_characters() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !matches!(path.extension().and_then(|extension| extension.to_str()), Some("py" | "ts")) {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let longest = source.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(source.lines().count() <= 60, "{name} has {} lines", source.lines().count());
        assert!(longest <= 120, "{name} has a line of {longest} characters");
        seen.push(name);
    }
    seen.sort();
    let expected = ["batch", "handler", "worker"].map(|name| [format!("{name}.py"), format!("{name}.ts")]);
    assert_eq!(seen, expected.concat());
}
