//! The languages of the code graph: recognised by file name, parsed by one grammar each.

use serde::{Deserialize, Serialize};

/// A language whose imports the graph understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Rust, `.rs`.
    Rust,
    /// Python, `.py` and stubs `.pyi`.
    Python,
    /// TypeScript, with and without JSX.
    TypeScript,
    /// JavaScript, with and without JSX.
    JavaScript,
    /// Go, `.go`.
    Go,
}

impl Language {
    /// The language of a path, judged by its ending alone; `None` for everything else.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let (stem, ending) = name.rsplit_once('.')?;
        if stem.is_empty() || stem.ends_with(".min") {
            return None;
        }
        match ending {
            "rs" => Some(Self::Rust),
            "py" | "pyi" => Some(Self::Python),
            "ts" | "tsx" | "mts" | "cts" => Some(Self::TypeScript),
            "js" | "jsx" | "mjs" | "cjs" => Some(Self::JavaScript),
            "go" => Some(Self::Go),
            _ => None,
        }
    }

    /// The name under which the language is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::TypeScript => "typescript",
            Self::JavaScript => "javascript",
            Self::Go => "go",
        }
    }

    /// What stands between the parts of a qualified name.
    #[must_use]
    pub fn separator(self) -> &'static str {
        match self {
            Self::Rust => "::",
            _ => ".",
        }
    }

    /// Reads the stored name back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Rust, Self::Python, Self::TypeScript, Self::JavaScript, Self::Go]
            .into_iter()
            .find(|language| language.as_str() == text)
    }
}

/// Whether a path is a test by the conventions of its language (inline tests are definitions of kind `test`).
#[must_use]
pub fn is_test_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_test_directory = path
        .split('/')
        .rev()
        .skip(1)
        .any(|part| matches!(part, "tests" | "test" | "__tests__" | "testing" | "spec" | "e2e"));
    match Language::of_path(path) {
        Some(Language::Go) => name.ends_with("_test.go"),
        Some(Language::Python) => {
            name.starts_with("test_") || name.ends_with("_test.py") || name == "conftest.py" || in_test_directory
        }
        Some(Language::TypeScript | Language::JavaScript) => {
            name.contains(".test.") || name.contains(".spec.") || in_test_directory
        }
        Some(Language::Rust) => in_test_directory || name == "tests.rs",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn language_follows_the_ending() {
        for (path, expected) in [
            ("src/lib.rs", Some(Language::Rust)),
            ("a/b.pyi", Some(Language::Python)),
            ("web/App.tsx", Some(Language::TypeScript)),
            ("web/types.d.ts", Some(Language::TypeScript)),
            ("web/jquery.min.js", None),
            ("main.go", Some(Language::Go)),
            (".rs", None),
            ("README.md", None),
        ] {
            assert_eq!(Language::of_path(path), expected, "{path}");
        }
    }

    #[test]
    fn test_files_are_known_by_convention() {
        for (path, expected) in [
            ("crates/a/tests/it.rs", true),
            ("crates/a/src/lib.rs", false),
            ("pkg/test_util.py", true),
            ("pkg/testimony.py", false),
            ("src/util.spec.ts", true),
            ("bus/claim_test.go", true),
            ("tests/claim.go", false),
        ] {
            assert_eq!(is_test_path(path), expected, "{path}");
        }
    }
}
