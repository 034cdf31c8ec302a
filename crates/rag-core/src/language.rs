//! Which language a file is written in, judged by its name alone.

use std::path::Path;

/// A language that chunking treats in its own way; everything else that is text is [`Language::Text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// Rust, chunked by definition.
    Rust,
    /// Python, chunked by definition.
    Python,
    /// JavaScript with or without JSX, chunked by definition.
    JavaScript,
    /// TypeScript, chunked by definition.
    TypeScript,
    /// TypeScript with JSX, chunked by definition.
    Tsx,
    /// Go, chunked by definition.
    Go,
    /// Markdown, chunked by heading.
    Markdown,
    /// SQL, chunked by statement.
    Sql,
    /// TOML, chunked by paragraph.
    Toml,
    /// YAML, chunked by paragraph.
    Yaml,
    /// JSON, chunked by window; large files are data and skipped by the walk.
    Json,
    /// Shell scripts, chunked by paragraph.
    Shell,
    /// Source in a language without a grammar here, chunked by paragraph.
    OtherCode,
    /// Prose and anything else that is text, chunked by paragraph.
    Text,
}

impl Language {
    /// Judges by file name and extension; never fails, since unknown text is still worth indexing.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str()).unwrap_or("");
        match extension {
            "rs" => Self::Rust,
            "py" | "pyi" => Self::Python,
            "js" | "jsx" | "mjs" | "cjs" => Self::JavaScript,
            "ts" | "mts" | "cts" => Self::TypeScript,
            "tsx" => Self::Tsx,
            "go" => Self::Go,
            "md" | "mdx" | "markdown" => Self::Markdown,
            "sql" => Self::Sql,
            "toml" => Self::Toml,
            "yaml" | "yml" => Self::Yaml,
            "json" | "jsonc" | "json5" => Self::Json,
            "sh" | "bash" | "zsh" | "fish" => Self::Shell,
            "c" | "h" | "cc" | "cpp" | "cxx" | "hpp" | "java" | "kt" | "kts" | "scala" | "rb" | "php" | "cs"
            | "swift" | "ex" | "exs" | "erl" | "hs" | "ml" | "clj" | "lua" | "pl" | "pm" | "r" | "jl" | "dart"
            | "zig" | "nim" | "vue" | "svelte" | "css" | "scss" | "html" | "proto" | "tf" | "nix" | "gradle" => {
                Self::OtherCode
            }
            _ if matches!(name.as_str(), "dockerfile" | "makefile" | "justfile" | "containerfile") => Self::OtherCode,
            _ => Self::Text,
        }
    }

    /// The name kept in the database and shown in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Tsx => "tsx",
            Self::Go => "go",
            Self::Markdown => "markdown",
            Self::Sql => "sql",
            Self::Toml => "toml",
            Self::Yaml => "yaml",
            Self::Json => "json",
            Self::Shell => "shell",
            Self::OtherCode => "code",
            Self::Text => "text",
        }
    }

    /// Whether chunks of this language are prose and live in `vector_documents` rather than `code_vectors`.
    #[must_use]
    pub fn is_prose(self) -> bool {
        matches!(self, Self::Markdown | Self::Text)
    }
}

#[cfg(test)]
mod tests {
    use super::Language;

    #[test]
    fn language_follows_extension_and_well_known_names() {
        for (path, expected) in [
            ("src/lib.rs", Language::Rust),
            ("a/b.test.tsx", Language::Tsx),
            ("pkg/mod.PY", Language::Python),
            ("deploy/Dockerfile", Language::OtherCode),
            ("README", Language::Text),
            ("docs/a.md", Language::Markdown),
        ] {
            assert_eq!(Language::of_path(path), expected, "{path}");
        }
    }
}
