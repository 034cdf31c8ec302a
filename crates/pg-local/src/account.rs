//! The account that runs Postgres: the caller's own, or a lesser one when the caller is root.

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::{MetadataExt, fchown, lchown},
        process::CommandExt,
    },
    path::Path,
    process::Stdio,
};

use tokio::process::Command;

use crate::Error;

/// In order of preference; the first one has the right name, the others merely exist everywhere.
const CANDIDATES: [&str; 4] = ["postgres", "cogo", "nobody", "daemon"];

/// An account to drop to; only root ever has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Root drops to the owner of the directory, else to a well-known account; anyone else stays who they are.
    pub(crate) fn for_directory(directory: &Path) -> Result<Option<Self>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        if let Ok(metadata) = fs::metadata(directory)
            && metadata.uid() != 0
        {
            return Ok(Some(Self { uid: metadata.uid(), gid: metadata.gid() }));
        }
        let accounts = fs::read_to_string("/etc/passwd").map_err(Error::file("read", "/etc/passwd"))?;
        preferred(&accounts).ok_or(Error::NoAccount).map(Some)
    }

    /// Whether this account may pass through the directory or run the program.
    pub(crate) async fn reaches(self, path: &Path) -> bool {
        let mut test = command(Path::new("test"), Some(self));
        test.arg("-x").arg(path).status().await.is_ok_and(|status| status.success())
    }
}

/// Hands a directory to the account; nothing to do without one.
pub(crate) fn hand_over(path: &Path, account: Option<Account>) -> Result<(), Error> {
    let Some(account) = account else { return Ok(()) };
    lchown(path, Some(account.uid), Some(account.gid)).map_err(Error::file("change the owner of", path))
}

/// Hands an open file to the account; nothing to do without one.
pub(crate) fn hand_over_open(file: &File, account: Option<Account>) -> io::Result<()> {
    account.map_or(Ok(()), |account| fchown(file, Some(account.uid), Some(account.gid)))
}

/// A command that runs as the account, without anything that would change what Postgres' programs do.
pub(crate) fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = std::process::Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command.into()
}

fn preferred(passwd: &str) -> Option<Account> {
    CANDIDATES.iter().find_map(|candidate| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid: u32 = fields.nth(1)?.parse().ok()?;
            let gid: u32 = fields.next()?.parse().ok()?;
            (name == *candidate && uid != 0).then_some(Account { uid, gid })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(passwd: &str, expected: Option<(u32, u32)>) {
        assert_eq!(preferred(passwd).map(|account| (account.uid, account.gid)), expected);
    }

    #[test]
    fn the_account_postgres_is_preferred_and_root_is_never_chosen() {
        check("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:\npostgres:x:101:104::/:/bin/sh", Some((101, 104)));
        check("root:x:0:0::/:/bin/sh\nnobody:x:65534:65533::/:", Some((65534, 65533)));
        check("postgres:x:0:0::/:\n", None);
        check("broken line\npostgres:x:abc:1::/:", None);
    }

    #[test]
    fn an_ordinary_user_never_changes_accounts() {
        let account = Account::for_directory(Path::new("/")).expect("the list of accounts is readable");
        assert_eq!(account.is_some(), rustix::process::geteuid().is_root());
    }
}
