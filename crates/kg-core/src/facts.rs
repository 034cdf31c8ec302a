//! What one file says about itself, before anything outside it is looked at; cached by content hash.

use serde::{Deserialize, Serialize};

/// Raised whenever extraction changes, so that cached facts of an older build are read anew.
pub(crate) const EXTRACTOR_VERSION: i16 = 1;

/// Longest text of a reference or name that is kept, in characters.
const TEXT_LIMIT: usize = 200;

/// Everything that extraction finds in one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Lines of the file.
    pub lines: u32,
    /// Whether the grammar met something that it could not read; the rest is extracted all the same.
    pub parse_errors: bool,
    /// The name in Go's `package` clause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Names may exist here that no parser sees (item macros, module `__getattr__`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    /// What the file defines, in source order.
    pub definitions: Vec<Definition>,
    /// What the file refers to, in source order.
    pub references: Vec<Reference>,
    /// JavaScript names under which local definitions leave the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
}

/// What sort of thing a definition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefinitionKind {
    /// An inline module or namespace.
    Module,
    /// A class.
    Class,
    /// A struct or union.
    Struct,
    /// An enumeration.
    Enum,
    /// A trait.
    Trait,
    /// An interface.
    Interface,
    /// A type alias or another named type.
    Type,
    /// A free function.
    Function,
    /// A function of a type.
    Method,
    /// A constant, static or module variable.
    Constant,
    /// A macro.
    Macro,
    /// A test function or test case.
    Test,
}

impl DefinitionKind {
    /// The name under which the kind is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Class => "class",
            Self::Struct => "struct",
            Self::Enum => "enum",
            Self::Trait => "trait",
            Self::Interface => "interface",
            Self::Type => "type",
            Self::Function => "function",
            Self::Method => "method",
            Self::Constant => "constant",
            Self::Macro => "macro",
            Self::Test => "test",
        }
    }
}

/// A named thing with its lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its own name.
    pub name: String,
    /// Its name within the file, for example `Claim::extend` or `Worker.run`.
    pub qualified_name: String,
    /// First line, counted from 1, with attributes and decorators.
    pub start_line: u32,
    /// Last line, counted from 1.
    pub end_line: u32,
}

/// How a reference is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceKind {
    /// An import statement.
    Imports,
    /// An import that also passes the name on (`pub use`, `export … from`).
    Reexports,
    /// A qualified path in the code (`crate::claim::next()`, `bus.Claim` in Go).
    References,
    /// A module declaration that names another file (`mod claim;`).
    Declares,
}

impl ReferenceKind {
    /// The name under which the kind is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imports => "imports",
            Self::Reexports => "reexports",
            Self::References => "references",
            Self::Declares => "declares",
        }
    }
}

/// One name that a file takes from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// How it is written.
    pub kind: ReferenceKind,
    /// Line of the name itself, counted from 1.
    pub line: u32,
    /// First line of the whole statement.
    pub start_line: u32,
    /// Last line of the whole statement.
    pub end_line: u32,
    /// The reference in one line, shortened.
    pub text: String,
    /// Rust path, Python module with its leading dots, JavaScript specifier, Go import path.
    pub module: String,
    /// The member taken from the module; `*` for all of them, absent for the module itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name that it has in this file from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// Rust: the inline module in which it stands, `::`-separated, empty for the file itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Rust: the file named by `#[path]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_attribute: Option<String>,
    /// The target is computed at run time, so nothing can resolve it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub computed: bool,
}

/// A JavaScript export of something local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The name outside.
    pub name: String,
    /// The name inside.
    pub local: String,
}

/// One line of at most 200 characters, without NUL (Postgres refuses it).
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > TEXT_LIMIT {
            break;
        }
    }
    line.retain(|character| character != '\0');
    line.chars().take(TEXT_LIMIT).collect()
}
