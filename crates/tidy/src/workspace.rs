//! Members of the workspace, their manifests and their files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Directories that hold nothing that was written by hand.
const GENERATED: [&str; 4] = ["target", ".git", ".cogo", "node_modules"];

/// Largest file that is taken for text.
const MAX_TEXT_BYTES: u64 = 2 << 20;

/// On which side of the workspace a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory in `crates/`.
    Library,
    /// A directory in `services/`.
    Service,
}

/// One package of the workspace.
#[derive(Debug, Clone)]
pub struct Member {
    /// Name of its directory.
    pub directory: String,
    /// Where it stands.
    pub kind: Kind,
    /// Its directory on this machine.
    pub path: PathBuf,
    /// Its parsed `Cargo.toml`.
    pub manifest: toml::Table,
}

impl Member {
    /// The name in its manifest.
    #[must_use]
    pub fn package(&self) -> &str {
        let name = self.manifest.get("package").and_then(|package| package.get("name"));
        name.and_then(toml::Value::as_str).unwrap_or_default()
    }

    /// Its directory as it is named from the root, as in `crates/db`.
    #[must_use]
    pub fn place(&self) -> String {
        relative(&self.path)
    }

    /// Whether it only serves development and may be laxer.
    #[must_use]
    pub fn is_dev_only(&self) -> bool {
        matches!(self.directory.as_str(), "e2e" | "tidy" | "test-support")
    }

    /// Its Rust files below one directory (`src`, `tests`), or all with an empty name, in order.
    #[must_use]
    pub fn rust_files(&self, below: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        walk(&self.path.join(below), &mut files);
        files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
        files
    }

    /// Its production files: those in `src` that are not modules of tests.
    #[must_use]
    pub fn production_files(&self) -> Vec<PathBuf> {
        let mut files = self.rust_files("src");
        files.retain(|file| {
            let below = file.strip_prefix(&self.path).unwrap_or(file);
            !below.iter().any(|part| part == "tests" || part == "tests.rs")
        });
        files
    }
}

/// The root of the workspace, found from the directory in which Cargo runs the tests.
/// Not from the directory of the build: checkouts may share their build directory, and then that one may be another's.
///
/// # Panics
/// Outside of a workspace.
#[must_use]
pub fn root() -> PathBuf {
    let here = std::env::current_dir().expect("Cargo runs tests in the directory of their package");
    let root = here.ancestors().find(|directory| directory.join("Cargo.lock").is_file());
    root.map(Path::to_path_buf).expect("the root holds Cargo.lock")
}

/// Where the migrations stand.
#[must_use]
pub fn migrations_directory() -> PathBuf {
    root().join("migrations")
}

/// Every member, libraries first, in order of their names.
#[must_use]
pub fn members() -> Vec<Member> {
    let mut members = Vec::new();
    for (directory, kind) in [("crates", Kind::Library), ("services", Kind::Service)] {
        for path in entries(&root().join(directory)) {
            let manifest_path = path.join("Cargo.toml");
            if !manifest_path.is_file() {
                continue;
            }
            let manifest = read(&manifest_path)
                .parse()
                .unwrap_or_else(|error| panic!("{} is not TOML: {error}", relative(&manifest_path)));
            let directory = path.file_name().map(|name| name.to_string_lossy().into_owned());
            members.push(Member { directory: directory.unwrap_or_default(), kind, path, manifest });
        }
    }
    members
}

/// A file of the workspace as text; what is not UTF-8 is replaced.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{} cannot be read: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every text file that is or would be committed, with its name from the root.
#[must_use]
pub fn text_files() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for path in committed_files().unwrap_or_else(all_files) {
        // Listed by git, but deleted or a link to elsewhere.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if !metadata.is_file() || metadata.len() > MAX_TEXT_BYTES {
            continue;
        }
        let Ok(bytes) = fs::read(&path) else { continue };
        if let Ok(text) = String::from_utf8(bytes)
            && !text.contains('\0')
        {
            texts.push((relative(&path), text));
        }
    }
    texts
}

fn committed_files() -> Option<Vec<PathBuf>> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()?;
    let names = String::from_utf8(listing.stdout).ok()?;
    // Without git, or in an unpacked archive, the listing fails or is empty.
    let usable = listing.status.success() && !names.is_empty();
    usable.then(|| names.split_terminator('\0').map(|name| root().join(name)).collect())
}

fn all_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for path in entries(directory) {
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            let is_generated =
                path.file_name().is_some_and(|name| GENERATED.iter().any(|generated| name == *generated));
            if !is_generated {
                walk(&path, files);
            }
        } else {
            files.push(path);
        }
    }
}

/// What a directory holds, sorted; nothing when there is none.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}
