//! Which directories a process may read files from, whoever asks.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// The directories of the setting `allowed_roots`.
#[derive(Debug, Clone)]
pub struct AllowedRoots(Vec<PathBuf>);

/// Why a directory is not opened.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is not there or cannot be entered.
    #[error("Directory {path} cannot be opened")]
    Open {
        /// The directory as it was asked for.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It lies elsewhere.
    #[error("Directory {path} is not below an allowed one ({allowed}); see COGO_ALLOWED_ROOTS")]
    Outside {
        /// The directory as it was asked for.
        path: String,
        /// The allowed ones.
        allowed: String,
    },
}

impl AllowedRoots {
    /// These directories; none means the working directory of the process.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub fn new(directories: &[String]) -> io::Result<Self> {
        if directories.is_empty() {
            return Ok(Self(vec![std::env::current_dir()?]));
        }
        Ok(Self(directories.iter().map(PathBuf::from).collect()))
    }

    /// The real path of a directory, links resolved, if it is or lies below an allowed one.
    ///
    /// # Errors
    /// When it is not a directory that can be entered, or lies elsewhere.
    pub fn resolve(&self, directory: &str) -> Result<PathBuf, RootError> {
        let outside = || {
            let named: Vec<String> = self.0.iter().map(|root| root.display().to_string()).collect();
            RootError::Outside { path: directory.to_owned(), allowed: named.join(", ") }
        };
        let roots: Vec<PathBuf> = self.0.iter().filter_map(|root| root.canonicalize().ok()).collect();
        let is_inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        let asked = Path::new(directory);
        let real = match asked.canonicalize() {
            Ok(real) if is_inside(&real) => real,
            // what cannot be opened is told only of places that the asker may know about
            Err(source) if is_inside(asked) && !asked.components().any(|part| part == Component::ParentDir) => {
                return Err(RootError::Open { path: directory.to_owned(), source });
            }
            Ok(_) | Err(_) => return Err(outside()),
        };
        if real.is_dir() {
            return Ok(real);
        }
        Err(RootError::Open { path: directory.to_owned(), source: io::Error::from(io::ErrorKind::NotADirectory) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_an_allowed_directory_is_opened() {
        let roots = AllowedRoots::new(&["/usr/share".to_owned(), "/nonexistent".to_owned()]).unwrap();
        assert_eq!(roots.resolve("/usr/share/../share").unwrap(), PathBuf::from("/usr/share"));
        assert!(matches!(roots.resolve("/usr/share/nothing"), Err(RootError::Open { .. })));
        // whether these exist is nobody's business
        for elsewhere in
            ["/usr/share/../lib", "/usr/sharepoint", "/etc/passwd", "/etc/nothing", "/usr/share/../nothing"]
        {
            assert!(matches!(roots.resolve(elsewhere), Err(RootError::Outside { .. })), "{elsewhere}");
        }
    }
}
