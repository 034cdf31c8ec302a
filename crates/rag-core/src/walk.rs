//! Which files below an allowed root are worth indexing, and their hashes.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use ignore::{DirEntry, WalkBuilder};
use sha2::{Digest, Sha256};

use crate::language::Language;

/// Directories that hold other people's code or build output even where no ignore file says so.
const FOREIGN_DIRECTORIES: [&str; 3] = ["node_modules", "__pycache__", "site-packages"];
/// A JSON file above this is data, not something that a person wrote and asks about.
const JSON_LIMIT_BYTES: u64 = 64 * 1024;
/// A line this long does not occur in text written by hand; the file is minified or generated.
const LONGEST_LINE_BYTES: usize = 5_000;
/// Reports name at most this many failed files; the count stays exact.
const ERRORS_NAMED: usize = 20;

/// What the walk refuses to read.
#[derive(Debug, Clone, Copy)]
pub struct WalkLimits {
    /// Largest file in bytes that is read.
    pub max_file_bytes: u64,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self { max_file_bytes: 512 * 1024 }
    }
}

/// One file that is worth indexing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Path below the root with `/` between its parts.
    pub path: String,
    /// Language by name.
    pub language: Language,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// A file's text together with what the catalogue keeps about it.
#[derive(Debug, Clone)]
pub struct FileText {
    /// Path, language, size and hash.
    pub entry: FileEntry,
    /// The whole text; valid UTF-8 without NUL.
    pub text: String,
}

/// Why a file is left out; not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// It holds a NUL byte or is not UTF-8.
    Binary,
    /// It is above the size cap, or a JSON file above 64 KiB.
    TooLarge,
    /// Its lines are far longer than anyone writes.
    Minified,
    /// It is a lock file, written by a tool.
    LockFile,
    /// It is neither a file nor a directory, or a link.
    NotAFile,
}

/// What became of reading one file.
#[derive(Debug)]
pub enum Reading {
    /// It is worth indexing.
    Text(FileText),
    /// It is left out on purpose.
    Skipped(SkipReason),
    /// It is not there any more.
    Missing,
}

/// Result of a walk: the files and what was left out.
#[derive(Debug, Default)]
pub struct Walked {
    /// Files worth indexing, ordered by path.
    pub files: Vec<FileEntry>,
    /// Files left out on purpose.
    pub skipped: usize,
    /// Files or directories that could not be read.
    pub failed: usize,
    /// The first few of the failures, `path: reason`.
    pub errors: Vec<String>,
}

/// Why a root cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root does not exist or cannot be entered.
    #[error("Root {path} cannot be opened")]
    Root {
        /// The path as it was given.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The root lies outside every allowed directory.
    #[error("Root {0} lies outside the allowed directories")]
    NotAllowed(String),
    /// A path of a message leaves its root.
    #[error("Path {0} does not stay below its root")]
    Escapes(String),
    /// One file could not be read.
    #[error("File {path} cannot be read")]
    File {
        /// Path below the root.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Canonicalises `root` and checks that it is, or lies below, one of `allowed`; an empty list allows all.
///
/// # Errors
/// When the root is not a readable directory or not allowed.
pub fn resolve_root(root: &Path, allowed: &[PathBuf]) -> Result<PathBuf, Error> {
    let canonical = canonicalise(root)?;
    if !canonical.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotADirectory, "not a directory");
        return Err(Error::Root { path: root.display().to_string(), source });
    }
    let permitted = allowed.is_empty()
        || allowed
            .iter()
            .filter_map(|directory| fs::canonicalize(directory).ok())
            .any(|directory| canonical.starts_with(directory));
    if permitted { Ok(canonical) } else { Err(Error::NotAllowed(root.display().to_string())) }
}

/// Walks `root` (blocking), honouring `.gitignore`, and hashes every file worth indexing.
///
/// # Errors
/// Only when the root itself cannot be opened; single files are counted in the result.
pub fn walk(root: &Path, limits: WalkLimits) -> Result<Walked, Error> {
    let root = resolve_root(root, &[])?;
    let mut walked = Walked::default();
    // Ignore files above the root are not read: a `*` in somebody's home must not empty the index.
    let entries = WalkBuilder::new(&root)
        .hidden(true)
        .follow_links(false)
        .require_git(false)
        .parents(false)
        .git_global(false)
        .sort_by_file_path(Path::cmp)
        .filter_entry(is_own_directory)
        .build();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                walked.fail(error.to_string());
                continue;
            }
        };
        if entry.file_type().is_some_and(|kind| kind.is_dir()) {
            continue;
        }
        let Some(path) = relative_path(&root, entry.path()) else {
            walked.fail(format!("{}: name is not UTF-8", entry.path().display()));
            continue;
        };
        match read_file(&root, &path, limits) {
            Ok(Reading::Text(file)) => walked.files.push(file.entry),
            Ok(Reading::Skipped(_) | Reading::Missing) => walked.skipped += 1,
            Err(error) => walked.fail(format!("{path}: {error}")),
        }
    }
    walked.files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(walked)
}

/// Reads one file below a canonical `root` (blocking); refuses links and paths that leave the root.
///
/// # Errors
/// When the path escapes the root or the operating system refuses the read.
pub fn read_file(root: &Path, path: &str, limits: WalkLimits) -> Result<Reading, Error> {
    let stays_below = !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !stays_below {
        return Err(Error::Escapes(path.to_owned()));
    }
    let full = root.join(path);
    let failed = |source| Error::File { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(&full) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Reading::Missing);
        }
        Err(error) => return Err(failed(error)),
    };
    if !metadata.is_file() {
        return Ok(Reading::Skipped(SkipReason::NotAFile));
    }
    // A link in a directory above the file would lead out of the root unseen.
    if fs::canonicalize(&full).map_err(failed)? != full {
        return Err(Error::Escapes(path.to_owned()));
    }
    let language = Language::of_path(path);
    if metadata.len() > limits.max_file_bytes || (language == Language::Json && metadata.len() > JSON_LIMIT_BYTES) {
        return Ok(Reading::Skipped(SkipReason::TooLarge));
    }
    if is_lock_file(path) {
        return Ok(Reading::Skipped(SkipReason::LockFile));
    }
    let content = fs::read(&full).map_err(failed)?;
    Ok(judge(path, language, content))
}

fn judge(path: &str, language: Language, content: Vec<u8>) -> Reading {
    let sha256: [u8; 32] = Sha256::digest(&content).into();
    let bytes = content.len() as u64;
    // The whole content is searched, not just its head: a NUL anywhere could not be stored.
    if content.contains(&0) {
        return Reading::Skipped(SkipReason::Binary);
    }
    let Ok(text) = String::from_utf8(content) else {
        return Reading::Skipped(SkipReason::Binary);
    };
    let prose = language.is_prose();
    if !prose && text.lines().any(|line| line.len() > LONGEST_LINE_BYTES) {
        return Reading::Skipped(SkipReason::Minified);
    }
    Reading::Text(FileText { entry: FileEntry { path: path.to_owned(), language, bytes, sha256 }, text })
}

fn canonicalise(root: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(root).map_err(|source| Error::Root { path: root.display().to_string(), source })
}

fn is_own_directory(entry: &DirEntry) -> bool {
    let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
    if !is_directory || entry.depth() == 0 {
        return true;
    }
    let foreign = entry.file_name().to_str().is_some_and(|name| FOREIGN_DIRECTORIES.contains(&name));
    // Build tools mark their output with this file, so no list of names is needed for them.
    !foreign && !entry.path().join("CACHEDIR.TAG").exists()
}

fn is_lock_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension == Some("lock")
        || matches!(name, "package-lock.json" | "pnpm-lock.yaml" | "go.sum" | "npm-shrinkwrap.json")
}

fn relative_path(root: &Path, path: &Path) -> Option<String> {
    let relative = path.strip_prefix(root).ok()?;
    let parts: Option<Vec<&str>> = relative.components().map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

impl Walked {
    fn fail(&mut self, reason: String) {
        self.failed += 1;
        if self.errors.len() < ERRORS_NAMED {
            self.errors.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Reading, SkipReason, WalkLimits, read_file, resolve_root, walk};

    #[test]
    fn walk_takes_text_and_leaves_out_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (path, content) in [
            (".gitignore", b"out/\n".as_slice()),
            ("src/a.rs", b"fn a() {}\n"),
            ("out/b.rs", b"fn b() {}\n"),
            (".hidden/c.rs", b"fn c() {}\n"),
            ("node_modules/d.js", b"d()\n"),
            ("Cargo.lock", b"x\n"),
            ("image.txt", b"ab\0cd"),
            ("late_nul.txt", &[b"x\n".repeat(8_000), vec![0]].concat()),
            ("latin1.txt", &[0xe4, 0xf6, b'\n']),
            ("app.min.js", &b"x".repeat(9_000)),
            ("big.txt", &b"line\n".repeat(200_000)),
            ("target/CACHEDIR.TAG", b"Signature\n"),
            ("target/e.rs", b"fn e() {}\n"),
        ] {
            let full = root.join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, content).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", root.join("link.txt")).unwrap();
        let walked = walk(root, WalkLimits::default()).unwrap();
        let paths: Vec<&str> = walked.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["src/a.rs"]);
        assert_eq!((walked.skipped, walked.failed), (7, 0));
    }

    #[test]
    fn path_of_a_message_cannot_leave_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = resolve_root(directory.path(), &[]).unwrap();
        fs::create_dir(root.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        for path in ["../x", "/etc/passwd", "a/../../x", "", "etc/hostname"] {
            let refused = read_file(&root, path, WalkLimits::default());
            assert!(matches!(refused, Err(super::Error::Escapes(_)) | Ok(Reading::Missing)), "{path}: {refused:?}");
            assert!(path == "etc/hostname" || refused.is_err(), "{path}");
        }
        let folder = read_file(&root, "inside", WalkLimits::default());
        assert!(matches!(folder, Ok(Reading::Skipped(SkipReason::NotAFile))));
    }

    #[test]
    fn root_outside_the_allowed_directories_is_refused() {
        let allowed = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let list = [allowed.path().to_path_buf()];
        assert!(resolve_root(allowed.path(), &list).is_ok());
        assert!(matches!(resolve_root(other.path(), &list), Err(super::Error::NotAllowed(_))));
        assert!(resolve_root(&other.path().join("missing"), &[]).is_err());
    }
}
