//! Cuts a file into pieces that answer a question by themselves and can be cited by line.

mod definitions;
mod grammar;
mod markdown;
mod pieces;
mod sql;

use crate::language::Language;

pub use pieces::{MAX_CHUNK_BYTES, MAX_CHUNK_LINES};

/// A contiguous range of lines of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// What stands there: `function`, `method`, `struct`, `class`, `section`, `module` for loose code, `text`.
    pub kind: &'static str,
    /// Name of the definition that the lines belong to.
    pub symbol: Option<String>,
    /// The name with what it is inside of: `Bus::claim` in Rust, `Bus.claim` elsewhere.
    pub qualified_name: Option<String>,
    /// Headings above a section of prose, outermost first, joined by ` > `.
    pub heading: Option<String>,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, inclusive.
    pub end_line: u32,
    /// 0 for the first piece of a definition or section, 1 and up for its continuations.
    pub part: u32,
    /// The lines, joined by a line feed.
    pub text: String,
}

/// Cuts `text` into chunks ordered by line; no non-blank line is lost, none is in two chunks.
#[must_use]
pub fn chunk(language: Language, text: &str) -> Vec<Chunk> {
    let lines: Vec<&str> = text.lines().collect();
    let spans = match language {
        Language::Markdown => markdown::spans(&lines),
        Language::Sql => sql::spans(&lines),
        _ => match grammar::Grammar::of(language) {
            Some(grammar) => definitions::spans(&grammar, text, &lines),
            None => vec![pieces::Span::loose(
                0,
                lines.len(),
                if language == Language::OtherCode { "module" } else { "text" },
            )],
        },
    };
    pieces::cut(&lines, spans)
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Language, MAX_CHUNK_BYTES, MAX_CHUNK_LINES, chunk};

    /// The rules that hold for every language and any text.
    fn check_rules(language: Language, text: &str) -> Vec<Chunk> {
        let chunks = chunk(language, text);
        let lines: Vec<&str> = text.lines().collect();
        let mut covered = vec![0; lines.len()];
        for piece in &chunks {
            let range = piece.start_line as usize - 1..piece.end_line as usize;
            assert_eq!(lines[range.clone()].join("\n"), piece.text, "text is the cited lines");
            assert!(range.len() <= MAX_CHUNK_LINES, "{} lines", range.len());
            assert!(range.len() == 1 || piece.text.len() <= MAX_CHUNK_BYTES + 2_400, "{} bytes", piece.text.len());
            covered[range].iter_mut().for_each(|count| *count += 1);
        }
        for (line, count) in lines.iter().zip(&covered) {
            assert!(*count <= 1 && (*count == 1 || line.trim().is_empty()), "{line:?} is in {count} chunks");
        }
        assert_eq!(chunks, chunk(language, text), "deterministic");
        chunks
    }

    fn check_names(language: Language, text: &str, expected: &[(&str, &str, u32, u32)]) {
        let chunks = check_rules(language, text);
        let found: Vec<(&str, &str, u32, u32)> = chunks
            .iter()
            .map(|piece| (piece.kind, piece.qualified_name.as_deref().unwrap_or(""), piece.start_line, piece.end_line))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn rust_is_cut_by_definition_with_its_docs() {
        let text = "//! File.\nuse a::b;\n\n/// Doc.\n#[derive(\n    Debug,\n)]\npub struct Bus {\n    x: u8,\n}\n\nimpl Bus {\n    const A: u8 = 1;\n\n    /// Claims.\n    #[must_use]\n    pub fn claim(&self) -> u8 {\n        1\n    }\n}\n\nimpl fmt::Display for Bus<'_> {\n    fn fmt(&self) {}\n}\n\n/// Limit.\npub const LIMIT: u8 = 3;\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn works() {}\n}\n";
        check_names(
            Language::Rust,
            text,
            &[
                ("module", "", 1, 2),
                ("struct", "Bus", 4, 10),
                ("impl", "Bus", 12, 12),
                ("const", "Bus::A", 13, 13),
                ("method", "Bus::claim", 15, 20),
                ("impl", "Bus", 22, 22),
                ("method", "Bus::fmt", 23, 24),
                ("const", "LIMIT", 26, 27),
                ("module", "tests", 29, 31),
                ("function", "tests::works", 32, 34),
            ],
        );
    }

    #[test]
    fn python_is_cut_by_definition_with_decorators() {
        let text = "import os\n\nLIMIT = 3\n\nclass Bus(Base):\n    \"\"\"Doc.\"\"\"\n    size = 1\n\n    @property\n    def claim(self):\n        return 1\n\n    async def stop(self):\n        pass\n\n# Why it is here.\n@cache\ndef main():\n    def inner():\n        pass\n";
        check_names(
            Language::Python,
            text,
            &[
                ("module", "", 1, 3),
                ("class", "Bus", 5, 7),
                ("method", "Bus.claim", 9, 11),
                ("method", "Bus.stop", 13, 14),
                ("function", "main", 16, 20),
            ],
        );
    }

    #[test]
    fn typescript_is_cut_by_definition_with_exports() {
        let text = "import x from './x';\n\n/** Doc. */\nexport class Bus {\n  size = 1;\n  claim(): void {\n    go();\n  }\n}\n\nexport const send = async (a: string) => {\n  return a;\n};\nexport interface Message { id: string }\nexport default function main() {}\ntype Id = string;\nenum Kind { A }\n";
        check_names(
            Language::TypeScript,
            text,
            &[
                ("module", "", 1, 1),
                ("class", "Bus", 3, 5),
                ("method", "Bus.claim", 6, 9),
                ("function", "send", 11, 13),
                ("interface", "Message", 14, 14),
                ("function", "main", 15, 15),
                ("type", "Id", 16, 16),
                ("enum", "Kind", 17, 17),
            ],
        );
    }

    #[test]
    fn go_is_cut_by_definition_with_receivers() {
        let text = "package bus\n\nimport \"fmt\"\n\n// Bus moves messages.\ntype Bus struct {\n\tsize int\n}\n\n// Claim takes one.\nfunc (b *Bus) Claim() error {\n\treturn nil\n}\n\nfunc main() {}\n";
        check_names(
            Language::Go,
            text,
            &[
                ("module", "", 1, 3),
                ("struct", "Bus", 5, 8),
                ("method", "Bus.Claim", 10, 13),
                ("function", "main", 15, 15),
            ],
        );
    }

    #[test]
    fn markdown_is_cut_by_heading_and_fences_are_respected() {
        let text = "# Title\n\n## Install\n\nRun it.\n\n```sh\n# not a heading\nmake\n```\n\n## Use\n\nAsk.\n";
        let chunks = check_rules(Language::Markdown, text);
        let found: Vec<(&str, u32, u32)> =
            chunks.iter().map(|piece| (piece.heading.as_deref().unwrap(), piece.start_line, piece.end_line)).collect();
        assert_eq!(found, [("Title > Install", 1, 10), ("Title > Use", 12, 14)]);
    }

    #[test]
    fn sql_is_cut_by_statement_and_objects_keep_what_is_said_of_them() {
        let text = "-- head\n\nset x = 1;\n\n-- Takes messages.\ncreate or replace function bus.claim(n int)\nreturns void as $$\n  create table no; select 1;\n\n$$;\n\ncomment on function bus.claim(int)\n  is 'x';\ngrant execute on function bus.claim(int) to a;\ncomment on schema bus is 'y';\n\ncreate table if not exists public.jobs (\n  id int\n);\ninsert into other values (1); insert into public.jobs values (1);\n";
        check_names(
            Language::Sql,
            text,
            &[
                ("module", "", 1, 1),
                ("module", "", 3, 3),
                ("function", "bus.claim", 5, 14),
                ("module", "", 15, 15),
                ("table", "public.jobs", 17, 19),
                ("module", "", 20, 20),
            ],
        );
    }

    #[test]
    fn comments_on_a_long_sql_object_are_a_chunk_of_their_own() {
        let body: String = (0..70).map(|n| format!("  perform {n};\n")).collect();
        let text =
            format!("create function a.sweep() as $$\n{body}$$;\ncomment on function a.sweep()\n  is 'Sweeps.';\n");
        let chunks = check_rules(Language::Sql, &text);
        let last = chunks.last().unwrap();
        assert_eq!((last.kind, last.symbol.as_deref(), last.part), ("comment", Some("sweep"), 0));
        assert!(last.text.starts_with("comment on function"), "{}", last.text);
    }

    #[test]
    fn long_definition_is_split_and_every_part_names_it() {
        let body: String = (0..150).map(|n| format!("    let value_{n} = compute({n});\n")).collect();
        let chunks = check_rules(Language::Rust, &format!("fn long() {{\n{body}}}\n"));
        assert!(chunks.len() >= 3);
        assert!(chunks.iter().all(|piece| piece.symbol.as_deref() == Some("long")));
        assert_eq!(
            chunks.iter().map(|piece| piece.part).collect::<Vec<_>>(),
            (0..chunks.len() as u32).collect::<Vec<_>>()
        );
    }

    #[test]
    fn broken_or_odd_text_still_chunks() {
        for text in [
            "fn a() {\n  let x = ;;; (\n}\n\nfn b( {\n",
            "class A {\n  def x(\n",
            "\n\n\n",
            "",
            "\u{feff}fn a() {}\r\nfn b() {}\r\n",
            "}}}}\n",
            "fn a() {} fn b() {}\nfn c() {}",
            "ünï = 'cödé'\n\n# Ü\n",
        ] {
            for language in [
                Language::Rust,
                Language::Python,
                Language::TypeScript,
                Language::Tsx,
                Language::JavaScript,
                Language::Go,
                Language::Markdown,
                Language::Sql,
                Language::Json,
                Language::OtherCode,
            ] {
                check_rules(language, text);
            }
        }
    }
}
