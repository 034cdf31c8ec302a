//! `cogo.conf`: what COGO wants of Postgres, written at every start.

use std::{fmt::Write, path::Path};

use crate::{Durability, Settings};

/// Appended once to `postgresql.conf`; the later line wins.
pub(crate) const INCLUDES: &str = "\ninclude = 'cogo.conf'\ninclude = 'local.conf'\n";

const ALWAYS: [(&str, &str); 11] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "200"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "2GB"),
    // Queue statements are short, so compiling them costs more than it gives.
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %q%a@%d "),
    // Checkpoints would fill a log that nobody reads.
    ("log_checkpoints", "off"),
    ("password_encryption", "scram-sha-256"),
];

const DISPOSABLE: [(&str, &str); 4] =
    [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off"), ("checkpoint_timeout", "1h")];

/// What the owner of a cluster finds to write into.
pub(crate) const EMPTY_LOCAL: &str = "# Own settings of this cluster; COGO never changes this file again.\n";

/// The text of `cogo.conf`.
pub(crate) fn render(settings: &Settings, port: u16, socket_directory: &Path) -> String {
    let mut text =
        String::from("# Rewritten by COGO at every start; own settings go to local.conf beside this file.\n");
    let mut set = |name: &str, value: &str| {
        let quoted = value.replace('\\', "\\\\").replace('\'', "''");
        writeln!(text, "{name} = '{quoted}'").expect("writing to a string cannot fail");
    };
    set("port", &port.to_string());
    set("unix_socket_directories", &socket_directory.to_string_lossy());
    ALWAYS.iter().for_each(|(name, value)| set(name, value));
    if settings.durability == Durability::Disposable {
        DISPOSABLE.iter().for_each(|(name, value)| set(name, value));
    }
    settings.extra.iter().for_each(|(name, value)| set(name, value));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_settings_come_last_and_are_quoted() {
        let mut settings = Settings::new("/srv/cogo");
        settings.extra.push(("max_connections".to_owned(), "7".to_owned()));
        settings.extra.push(("cluster_name".to_owned(), "it's".to_owned()));
        let text = render(&settings, 5555, Path::new("/srv/cogo/socket"));
        assert!(text.contains("port = '5555'"));
        assert!(text.find("max_connections = '200'") < text.find("max_connections = '7'"));
        assert!(text.ends_with("cluster_name = 'it''s'\n"));
        assert!(!text.contains("fsync"), "a durable cluster keeps fsync");
    }

    #[test]
    fn names_that_could_smuggle_lines_are_refused() {
        let mut settings = Settings::new("/srv/cogo");
        settings.extra.push(("fsync = off\nport".to_owned(), "1".to_owned()));
        assert!(settings.check().is_err());
    }
}
