//! The directory of a cluster: where its files are, who owns them, where it moved, its lock and its password.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;

use crate::{
    Error,
    account::{Account, hand_over, hand_over_open},
};

/// Where root keeps clusters whose requested directory the account of Postgres cannot reach.
pub(crate) const SYSTEM_DIRECTORY: &str = "/var/lib/cogo";
const MOVED_TO: &str = "moved-to";
const LOCK: &str = "cluster.lock";
/// Longest path of a socket that every system takes, without the closing zero.
const SOCKET_PATH_LIMIT: usize = 103;
/// A crash recovery may take minutes; beyond that the holder hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(400);
const LOCK_PAUSE: Duration = Duration::from_millis(25);
/// The log is cut when it is longer, in bytes.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;
/// 192 bits, so guessing is hopeless.
const PASSWORD_BYTES: usize = 24;

/// The directory of a cluster and the account that owns it.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    path: PathBuf,
    account: Option<Account>,
}

impl Home {
    /// The directory of a cluster that was made before.
    pub(crate) fn existing(requested: &Path) -> Result<Option<Self>, Error> {
        let path = moved_to(requested).unwrap_or_else(|| requested.to_path_buf());
        if !path.join(LOCK).exists() {
            return Ok(None);
        }
        let path = path.canonicalize().map_err(Error::file("resolve", &path))?;
        let account = Account::for_directory(&path)?;
        Ok(Some(Self { path, account }))
    }

    /// Makes the directory, elsewhere if the account of Postgres cannot reach it. Safe to run at once.
    pub(crate) async fn prepare(requested: &Path) -> Result<Self, Error> {
        make_directory(requested)?;
        let requested = requested.canonicalize().map_err(Error::file("resolve", requested))?;
        let mut path = moved_to(&requested).unwrap_or_else(|| requested.clone());
        make_directory(&path)?;
        let mut account = Account::for_directory(&path)?;
        if let (Some(lesser), Some(parent)) = (account, path.parent())
            && !lesser.reaches(parent).await
        {
            path = Path::new(SYSTEM_DIRECTORY).join(path_key(&requested));
            make_directory(&path)?;
            account = Account::for_directory(&path)?;
            let marker = requested.join(MOVED_TO);
            let text = format!("{}\n", path.display());
            fs::write(&marker, text).map_err(Error::file("write", marker))?;
            tracing::info!(directory = %path.display(), "cluster lives where its account can reach it");
        }
        let home = Self { path, account };
        home.refuse_foreign_content()?;
        hand_over(&home.path, account)?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&home.path, private).map_err(Error::file("protect", &home.path))?;
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn account(&self) -> Option<Account> {
        self.account
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    pub(crate) fn password_file(&self) -> PathBuf {
        self.path.join("cogo.password")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.path.join("cluster.state")
    }

    /// The directory for the socket: here, or a short one when the path would be too long.
    pub(crate) fn socket_directory(&self) -> PathBuf {
        let here = self.path.join("socket");
        let longest = here.join(".s.PGSQL.65535.lock");
        if longest.as_os_str().len() <= SOCKET_PATH_LIMIT {
            return here;
        }
        PathBuf::from(format!("/tmp/cogo-socket-{}", path_key(&self.path)))
    }

    /// Waits until no other process starts or stops this cluster; ends with the returned file.
    pub(crate) async fn lock(&self) -> Result<File, Error> {
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let taken = tokio::time::timeout(LOCK_PATIENCE, async {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
                    Err(fs::TryLockError::Error(error)) => return Err(error),
                }
            }
        });
        match taken.await {
            Ok(result) => result.map_err(Error::file("lock", &path)).map(|()| file),
            Err(_elapsed) => Err(Error::Locked(path)),
        }
    }

    /// Replaces a file in one step; only the account can read it.
    pub(crate) fn write(&self, path: &Path, contents: &str) -> Result<(), Error> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let mut file = self.create_fresh(&fresh)?;
        file.write_all(contents.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::file("write", &fresh))?;
        fs::rename(&fresh, path).map_err(Error::file("write", path))
    }

    /// The directory for the socket, ours alone even where everybody may write around it.
    pub(crate) fn make_socket_directory(&self) -> Result<PathBuf, Error> {
        let path = self.socket_directory();
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => hand_over(&path, self.account)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let owner = fs::metadata(&self.path).map_err(Error::file("read", &self.path))?.uid();
                let found = fs::symlink_metadata(&path).map_err(Error::file("read", &path))?;
                if !found.is_dir() || found.uid() != owner {
                    return Err(Error::ForeignDirectory(path));
                }
            }
            Err(error) => return Err(Error::file("create", path)(error)),
        }
        Ok(path)
    }

    /// A new file of the account. Never follows a link: root must not be led out of a directory that is not root's.
    fn create_fresh(&self, path: &Path) -> Result<File, Error> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", path)(error)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.create_new(true).write(true).mode(0o600).open(path).map_err(Error::file("create", path))?;
        hand_over_open(&file, self.account).map_err(Error::file("change the owner of", path))?;
        Ok(file)
    }

    /// The superuser's password, made up before the data exists.
    pub(crate) fn password(&self) -> Result<String, Error> {
        let path = self.password_file();
        match fs::read_to_string(&path) {
            Ok(password) => Ok(password.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.data().exists() {
                    return Err(Error::PasswordMissing(path));
                }
                let password = random_password().map_err(Error::file("read", "/dev/urandom"))?;
                self.write(&path, &format!("{password}\n"))?;
                Ok(password)
            }
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// Keeps the log bounded; Postgres appends, so cutting it under its hands is safe.
    pub(crate) fn bound_log(&self) -> Result<(), Error> {
        let path = self.log();
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
            return Ok(());
        }
        let never_a_link = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(never_a_link);
        let mut log = options.open(&path).map_err(Error::file("open", &path))?;
        let mut older = self.create_fresh(&self.path.join("postgres.log.1"))?;
        io::copy(&mut log, &mut older).and_then(|_length| log.set_len(0)).map_err(Error::file("cut", path))
    }

    fn refuse_foreign_content(&self) -> Result<(), Error> {
        let mut entries = fs::read_dir(&self.path).map_err(Error::file("read", &self.path))?;
        if entries.next().is_none() || self.path.join(LOCK).exists() {
            return Ok(());
        }
        Err(Error::ForeignDirectory(self.path.clone()))
    }
}

/// Sixteen characters that stand for a path, the same in every build (FNV-1a, 64 bit).
#[must_use]
pub fn path_key(path: &Path) -> String {
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

fn moved_to(requested: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(requested.join(MOVED_TO)).ok()?;
    Some(PathBuf::from(text.trim_end()))
}

fn random_password() -> io::Result<String> {
    let mut bytes = [0_u8; PASSWORD_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(path: &str) -> Home {
        Home { path: PathBuf::from(path), account: None }
    }

    #[test]
    fn socket_paths_fit_the_limit_of_every_system() {
        assert_eq!(home("/srv/cogo").socket_directory(), PathBuf::from("/srv/cogo/socket"));
        let long = home(&format!("/srv/{}", "x".repeat(120))).socket_directory();
        assert!(long.as_os_str().len() + ".s.PGSQL.65535.lock".len() < SOCKET_PATH_LIMIT);
    }

    #[test]
    fn the_key_of_a_path_never_changes() {
        assert_eq!(path_key(Path::new("")), "cbf29ce484222325");
        assert_eq!(path_key(Path::new("a")), "af63dc4c8601ec8c");
    }

    #[test]
    fn a_long_log_is_cut_and_its_text_kept_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let home = Home { path: directory.path().to_path_buf(), account: None };
        fs::write(home.log(), "short").expect("write");
        home.bound_log().expect("bound");
        assert_eq!(fs::read_to_string(home.log()).expect("read"), "short");
        let file = OpenOptions::new().write(true).open(home.log()).expect("open");
        file.set_len(LOG_LIMIT + 1).expect("grow");
        home.bound_log().expect("bound");
        assert_eq!(fs::metadata(home.log()).expect("log").len(), 0);
        assert_eq!(fs::metadata(directory.path().join("postgres.log.1")).expect("older").len(), LOG_LIMIT + 1);
    }
}
