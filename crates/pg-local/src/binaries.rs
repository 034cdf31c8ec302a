//! Finds the programs of Postgres: named, on the path, in the usual places, or downloaded.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use postgresql_embedded::{PostgreSQL, V17};

use crate::{
    Error,
    account::{Account, command},
    home::SYSTEM_DIRECTORY,
};

const PROGRAMS: [&str; 3] = ["initdb", "pg_ctl", "postgres"];
/// Directories that hold either programs in `bin` or one directory per version.
const USUAL_PLACES: [&str; 8] = [
    "/usr/lib/postgresql",
    "/usr/local/lib/postgresql",
    "/usr/pgsql",
    "/usr/local/pgsql",
    "/usr/local/opt",
    "/opt/homebrew/opt",
    "/usr/libexec/postgresql",
    "/opt/local/lib",
];
/// Some 30 MB over a slow line; a network that swallows everything must not hang a start for ever.
const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(300);

/// The programs to use, fitting the major version that made the data, if any does.
pub(crate) async fn find(
    named: Option<&Path>,
    made_by: Option<u32>,
    account: Option<Account>,
) -> Result<PathBuf, Error> {
    if let Some(named) = named {
        if !holds_programs(named) {
            return Err(Error::NoProgramsIn(named.to_path_buf()));
        }
        return Ok(named.to_path_buf());
    }
    let installed = installed(env::var_os("PATH").as_deref(), &USUAL_PLACES.map(PathBuf::from));
    if let Some(chosen) = choose(installed, made_by, account).await {
        return Ok(chosen);
    }
    // The future of a download is large and rarely needed.
    Box::pin(download(download_directory())).await
}

/// Major version of the programs in a directory.
pub(crate) async fn major_version(bin_dir: &Path, account: Option<Account>) -> Result<u32, Error> {
    let program = bin_dir.join("postgres");
    let output = command(&program, account)
        .arg("--version")
        .output()
        .await
        .map_err(|source| Error::Run { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text).ok_or_else(|| Error::Program { program, detail: format!("unknown version `{}`", text.trim()) })
}

/// The first that the account can run and that reads the data; else the first that it can run.
async fn choose(candidates: Vec<PathBuf>, made_by: Option<u32>, account: Option<Account>) -> Option<PathBuf> {
    let mut usable = None;
    for candidate in candidates {
        let Ok(found) = major_version(&candidate, account).await else { continue };
        if made_by.is_none_or(|made_by| made_by == found) {
            return Some(candidate);
        }
        usable.get_or_insert(candidate);
    }
    usable
}

/// Every directory with programs: the path first, then the usual places with the highest version first.
fn installed(search_path: Option<&OsStr>, places: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = search_path.map(|path| env::split_paths(path).collect()).unwrap_or_default();
    let mut by_version: Vec<(u32, PathBuf)> = Vec::new();
    for place in places {
        by_version.push((0, place.join("bin")));
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let digits: String = name.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
            by_version.push((digits.parse().unwrap_or(0), entry.path().join("bin")));
        }
    }
    by_version.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.extend(by_version.into_iter().map(|(_, path)| path));
    found.retain(|directory| holds_programs(directory));
    found
}

fn holds_programs(directory: &Path) -> bool {
    PROGRAMS.iter().all(|program| directory.join(program).is_file())
}

fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Shared by all clusters of a user, and reachable by the account that root drops to.
fn download_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return Path::new(SYSTEM_DIRECTORY).join("postgres");
    }
    env::home_dir().unwrap_or_else(env::temp_dir).join(".local/share/cogo/postgres")
}

/// Downloads and unpacks the programs; does nothing more when they are there.
async fn download(directory: PathBuf) -> Result<PathBuf, Error> {
    fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    let scratch = postgresql_embedded::Settings::new();
    let scratch_data = scratch.data_dir.clone();
    let scratch_secrets = scratch.password_file.parent().map(Path::to_path_buf);
    // The crate would run initdb next, which fails as root; a configuration file makes it think that it has.
    let pretended = scratch_data.join("postgresql.conf");
    fs::write(&pretended, "").map_err(Error::file("write", pretended))?;
    let settings = postgresql_embedded::Settings {
        version: V17.clone(),
        installation_dir: directory,
        temporary: false,
        ..scratch
    };
    tracing::info!("downloading Postgres, since none is installed");
    let mut engine = PostgreSQL::new(settings);
    let result = tokio::time::timeout(DOWNLOAD_PATIENCE, engine.setup()).await;
    for directory in [Some(scratch_data), scratch_secrets].into_iter().flatten() {
        if let Err(error) = fs::remove_dir_all(&directory) {
            tracing::debug!(%error, directory = %directory.display(), "kept a scratch directory");
        }
    }
    result.map_err(|elapsed| Error::Download(Box::new(elapsed)))?.map_err(|error| Error::Download(Box::new(error)))?;
    let bin_dir = engine.settings().binary_dir();
    if holds_programs(&bin_dir) { Ok(bin_dir) } else { Err(Error::NoProgramsIn(bin_dir)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretend_installation(root: &Path, version: &str) -> PathBuf {
        let bin_dir = root.join(version).join("bin");
        fs::create_dir_all(&bin_dir).expect("create");
        for program in PROGRAMS {
            fs::write(bin_dir.join(program), "").expect("write");
        }
        bin_dir
    }

    #[test]
    fn the_path_comes_first_then_the_highest_version() {
        let root = tempfile::tempdir().expect("temporary directory");
        let usual = root.path().join("usual");
        let nine = pretend_installation(&usual, "9");
        let seventeen = pretend_installation(&usual, "17");
        let brewed = pretend_installation(&usual, "postgresql@16");
        let on_path = pretend_installation(root.path(), "on-path");
        fs::create_dir_all(usual.join("18/bin")).expect("create");
        let found = installed(Some(on_path.as_os_str()), std::slice::from_ref(&usual));
        assert_eq!(found, [on_path, seventeen, brewed, nine]);
        assert!(installed(None, &[root.path().join("nowhere")]).is_empty());
    }

    #[test]
    fn versions_are_read_from_what_postgres_says() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("something else"), None);
    }

    #[tokio::test]
    async fn programs_that_were_named_but_are_missing_are_an_error_with_the_next_step() {
        let error = find(Some(Path::new("/nowhere/bin")), None, None).await.expect_err("nothing is there");
        assert!(error.to_string().contains("/nowhere/bin"));
        assert!(error.to_string().contains("pg_config --bindir"));
    }

    #[test]
    fn a_failed_download_says_what_to_install() {
        let error = Error::Download("no route to host".into());
        assert!(error.to_string().contains("apt-get install postgresql"));
        assert!(error.to_string().contains("DATABASE_URL"));
    }
}
