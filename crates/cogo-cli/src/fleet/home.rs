//! The directory of a fleet: where its files are and who is allowed to run it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    failure::{Failure, about_file},
    fleet::{FleetState, socket_file},
    proc_files::Identity,
};

/// A log that grew beyond this is cut, in bytes.
const LOG_LIMIT: u64 = 32 * 1024 * 1024;
/// How much of the end of a log is looked at for the reason of a failure, in bytes.
const TAIL: u64 = 8 * 1024;

/// Where the files of a fleet are.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    path: PathBuf,
}

impl Home {
    /// The fleet of this directory, which need not exist.
    pub(crate) fn new(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Self { path: absolute }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn database_url_file(&self) -> PathBuf {
        self.path.join("database.url")
    }

    fn state_file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Makes the directories.
    pub(crate) fn prepare(&self) -> Result<(), Failure> {
        let logs = self.path.join("logs");
        fs::create_dir_all(&logs).map_err(about_file("create", &logs))
    }

    /// Becomes the one `cogo up` of this directory until the file is closed; none if there is one already.
    pub(crate) fn take(&self) -> Result<Option<File>, Failure> {
        let path = self.lock_file();
        let Some(mut file) = lock(&path)? else { return Ok(None) };
        let program = std::env::current_exe().unwrap_or_default();
        let text = serde_json::to_string(&Identity::of(std::process::id(), &program)).unwrap_or_default();
        let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(about_file("write", &path))?;
        Ok(Some(file))
    }

    /// The `cogo up` of this directory, also while it is still starting; none if there is none.
    pub(crate) fn holder(&self) -> Result<Option<Identity>, Failure> {
        let path = self.lock_file();
        if !path.exists() || lock(&path)?.is_some() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(about_file("read", &path))?;
        let holder: Option<Identity> = serde_json::from_str(&text).unwrap_or_default();
        Ok(holder.filter(Identity::is_alive))
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("up.lock")
    }

    /// What the last `cogo up` wrote; none if it ended in good order or never ran.
    pub(crate) fn read_state(&self) -> Result<Option<FleetState>, Failure> {
        let path = self.state_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(about_file("read", &path)(error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::failed(format!("{} cannot be understood", path.display()))
                .because(&error)
                .hint("end the fleet by hand and remove the file")
        })
    }

    pub(crate) fn write_state(&self, state: &FleetState) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(state)
            .map_err(|error| Failure::failed("Encode the state of the fleet").because(&error))?;
        write_private(&self.state_file(), &text)
    }

    /// Forgets the fleet, once nothing of it runs.
    pub(crate) fn remove_state(&self) -> Result<(), Failure> {
        for path in [self.state_file(), self.database_url_file(), socket_file(self)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(about_file("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the log of the last run aside and opens a new one.
    pub(crate) fn fresh_log(&self, name: &str) -> Result<File, Failure> {
        let path = self.log(name);
        let older = path.with_extension("log.1");
        match fs::rename(&path, &older) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(about_file("move", &path)(error)),
            _ => {}
        }
        self.open_log(name)
    }

    /// The log, to be written at its end.
    pub(crate) fn open_log(&self, name: &str) -> Result<File, Failure> {
        let path = self.log(name);
        // a log may hold what a stranger sent, so it is for its owner only
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(about_file("open", &path))
    }

    /// Cuts a log that has grown too long; its writer appends, so this is safe under its hands.
    pub(crate) fn bound_log(&self, name: &str) -> io::Result<()> {
        let path = self.log(name);
        if fs::metadata(&path)?.len() <= LOG_LIMIT {
            return Ok(());
        }
        fs::copy(&path, path.with_extension("log.1"))?;
        OpenOptions::new().write(true).open(&path)?.set_len(0)
    }

    /// The last lines of a log, for an error text.
    pub(crate) fn log_tail(&self, name: &str) -> Vec<String> {
        tail(&self.log(name)).unwrap_or_default()
    }
}

/// The file, locked for as long as it is open; none if another process has locked it.
fn lock(path: &Path) -> Result<Option<File>, Failure> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(about_file("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(about_file("lock", path)(error)),
    }
}

fn tail(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Replaces a file in one step; only its owner can read it.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&fresh);
        about_file("write", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::fleet::DatabaseReference;

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let home = Home::new(&directory.path().join("fleet"));
        home.prepare().expect("directories");
        (directory, home)
    }

    #[test]
    fn state_is_for_its_owner_only_and_holds_no_password() {
        let (_directory, home) = home();
        write_private(&home.database_url_file(), "postgres://cogo:hunter2@db/cogo").expect("write");
        let state = FleetState::new(DatabaseReference::External { url_file: home.database_url_file() }, 7);
        home.write_state(&state).expect("write");
        home.write_state(&state).expect("write again");
        for path in [home.state_file(), home.database_url_file()] {
            let mode = fs::metadata(&path).expect("written").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        assert!(!fs::read_to_string(home.state_file()).expect("text").contains("hunter2"));
        assert_eq!(home.read_state().expect("readable").expect("there").port_offset, 7);
        home.remove_state().expect("remove");
        home.remove_state().expect("nothing left to remove is fine");
        assert!(home.read_state().expect("readable").is_none());
    }

    #[test]
    fn only_one_takes_a_directory() {
        let (_directory, home) = home();
        let first = home.take().expect("lock").expect("free");
        assert!(home.take().expect("lock").is_none());
        assert_eq!(home.holder().expect("readable").expect("this process").pid, std::process::id());
        drop(first);
        assert!(home.holder().expect("readable").is_none());
        assert!(home.take().expect("lock").is_some());
    }

    #[test]
    fn one_older_log_is_kept() {
        let (_directory, home) = home();
        for text in ["first", "second", "third"] {
            home.fresh_log("x").expect("log").write_all(text.as_bytes()).expect("write");
        }
        assert_eq!(fs::read_to_string(home.log("x")).expect("log"), "third");
        assert_eq!(fs::read_to_string(home.log("x").with_extension("log.1")).expect("older"), "second");
        assert_eq!(fs::read_dir(home.path().join("logs")).expect("logs").count(), 2);
    }

    #[test]
    fn a_log_that_grew_too_long_is_cut() {
        let (_directory, home) = home();
        let file = home.fresh_log("x").expect("log");
        file.set_len(LOG_LIMIT).expect("grow");
        home.bound_log("x").expect("bound");
        assert_eq!(file.metadata().expect("log").len(), LOG_LIMIT);
        file.set_len(LOG_LIMIT + 1).expect("grow");
        home.bound_log("x").expect("bound");
        assert_eq!(file.metadata().expect("log").len(), 0);
    }
}
