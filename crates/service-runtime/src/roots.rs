//! Which directories a process may read files from, whoever asks.

use std::{io, path::PathBuf};

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
        let open = |source| RootError::Open { path: directory.to_owned(), source };
        let real = PathBuf::from(directory).canonicalize().map_err(open)?;
        if !real.is_dir() {
            return Err(open(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let mut allowed = self.0.iter().filter_map(|root| root.canonicalize().ok());
        if allowed.any(|root| real.starts_with(root)) {
            return Ok(real);
        }
        let named: Vec<String> = self.0.iter().map(|root| root.display().to_string()).collect();
        Err(RootError::Outside { path: directory.to_owned(), allowed: named.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_an_allowed_directory_is_opened() {
        let roots = AllowedRoots::new(&["/usr/share".to_owned(), "/nonexistent".to_owned()]).unwrap();
        assert_eq!(roots.resolve("/usr/share/../share").unwrap(), PathBuf::from("/usr/share"));
        assert!(matches!(roots.resolve("/usr/share/../lib"), Err(RootError::Outside { .. })));
        assert!(matches!(roots.resolve("/usr/sharepoint"), Err(RootError::Open { .. })));
        assert!(matches!(roots.resolve("/nonexistent/x"), Err(RootError::Open { .. })));
        assert!(matches!(roots.resolve("/etc/passwd"), Err(RootError::Open { .. })));
    }
}
