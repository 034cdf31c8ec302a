//! Reading a tree: gitignore respected, hidden, large and binary files left out, symbolic links not followed.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use ignore::{DirEntry, WalkBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    extract::{self, extract},
    facts::FileFacts,
    language::Language,
    resolve::{SourceFile, SourceTree},
};

/// Larger source files are data or generated, 512 KiB.
pub(crate) const SIZE_LIMIT_BYTES: u64 = 512 * 1024;

/// Files between two progress reports.
const PROGRESS_STEP: usize = 50;

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// `read`, `resolve` or `write`.
    pub phase: &'static str,
    /// Files or rows done in this phase.
    pub done: usize,
    /// Files or rows of this phase.
    pub total: usize,
}

/// Called from time to time during a build, from whatever thread works.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// What was left out of the graph, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Source files above the size limit.
    pub too_large: usize,
    /// Source files with a NUL byte or no valid UTF-8.
    pub not_text: usize,
    /// Files and directories that could not be read.
    pub unreadable: usize,
}

/// Why a tree could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is missing or no directory; the stored graph stays as it is.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// A grammar could not be used.
    #[error("Extraction failed")]
    Extract(#[from] extract::Error),
}

/// A file as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) sha256: Vec<u8>,
    pub(crate) bytes: i64,
}

/// Facts of an earlier build, by path, valid while the digest is the same.
pub(crate) type FactsCache = HashMap<String, (Vec<u8>, FileFacts)>;

/// Everything that a build takes from disk.
#[derive(Debug, Default)]
pub(crate) struct ReadTree {
    pub(crate) tree: SourceTree,
    pub(crate) stamps: BTreeMap<String, Stamp>,
    pub(crate) extracted: usize,
    pub(crate) skipped: Skipped,
}

/// Reads the tree; only files whose digest is not in the cache are parsed. Blocks: call it off the async threads.
pub(crate) fn read_tree(root: &Path, mut cache: FactsCache, progress: &ProgressFn) -> Result<ReadTree, Error> {
    if !root.is_dir() {
        return Err(Error::NotADirectory(root.to_owned()));
    }
    let mut read = ReadTree::default();
    let sources = list(root, &mut read);
    let total = sources.len();
    for (done, (path, language)) in sources.into_iter().enumerate() {
        if done % PROGRESS_STEP == 0 {
            progress(Progress { phase: "read", done, total });
        }
        let Some((stamp, text)) = read_source(root, &path, &mut read) else {
            read.tree.other_paths.insert(path);
            continue;
        };
        let known = cache.remove(&path).filter(|(sha256, _)| *sha256 == stamp.sha256);
        let facts = match known {
            Some((_, facts)) => facts,
            None => {
                read.extracted += 1;
                extract(&path, language, &text)?
            }
        };
        read.stamps.insert(path.clone(), stamp);
        read.tree.files.insert(path, SourceFile { language, facts });
    }
    progress(Progress { phase: "read", done: total, total });
    Ok(read)
}

fn list(root: &Path, read: &mut ReadTree) -> Vec<(String, Language)> {
    let walk = WalkBuilder::new(root)
        .follow_links(false)
        .require_git(false)
        .git_global(false)
        .filter_entry(|entry| !is_foreign(entry))
        .build();
    let mut sources = Vec::new();
    for entry in walk {
        let Ok(entry) = entry else {
            read.skipped.unreadable += 1;
            continue;
        };
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let Some(path) = relative(root, entry.path()) else {
            read.skipped.unreadable += 1;
            continue;
        };
        if let Some(language) = Language::of_path(&path) {
            sources.push((path, language));
        } else if is_manifest(&path) {
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                read.tree.manifests.insert(path, text);
            }
        } else {
            read.tree.other_paths.insert(path);
        }
    }
    sources.sort();
    sources
}

/// Directories of installed packages, which belong to others even where no `.gitignore` says so.
fn is_foreign(entry: &DirEntry) -> bool {
    let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
    is_directory
        && entry.depth() > 0
        && (matches!(
            entry.file_name().to_str(),
            Some("node_modules" | "bower_components" | "__pycache__" | "site-packages")
        ) || entry.path().join("pyvenv.cfg").exists())
}

fn is_manifest(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_json = name.ends_with(".json")
        && (name == "package.json" || name.starts_with("tsconfig") || name.starts_with("jsconfig"));
    let is_requirements = name.starts_with("requirements") && name.ends_with(".txt");
    matches!(name, "Cargo.toml" | "go.mod" | "pyproject.toml" | "setup.cfg") || is_json || is_requirements
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path.strip_prefix(root).ok()?.iter().map(|part| part.to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

fn read_source(root: &Path, path: &str, read: &mut ReadTree) -> Option<(Stamp, String)> {
    let full = root.join(path);
    let size = std::fs::metadata(&full).map(|metadata| metadata.len());
    if size.as_ref().is_ok_and(|size| *size > SIZE_LIMIT_BYTES) {
        read.skipped.too_large += 1;
        return None;
    }
    let Ok(bytes) = std::fs::read(&full) else {
        read.skipped.unreadable += 1;
        return None;
    };
    let stamp =
        Stamp { sha256: Sha256::digest(&bytes).to_vec(), bytes: i64::try_from(bytes.len()).unwrap_or(i64::MAX) };
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Some((stamp, text)),
        _ => {
            read.skipped.not_text += 1;
            None
        }
    }
}
