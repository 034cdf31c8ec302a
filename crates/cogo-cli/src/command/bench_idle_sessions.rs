//! Which sessions of the database belong to which process: both ends of a connection know the same port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use sqlx::{Connection, PgConnection};

use crate::{context::Context, failure::Failure};

/// State of an open connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// The server processes of a Postgres on this machine, seen through a session of one's own.
pub(crate) struct Sessions {
    connection: PgConnection,
}

impl Sessions {
    /// None where the server is on another machine: its processes cannot be seen from here.
    pub(crate) async fn open(context: &Context) -> Result<Option<Self>, Failure> {
        let mut connection = PgConnection::connect(&context.database_url()?).await?;
        let (own, is_here): (i32, Option<bool>) =
            sqlx::query_as("select pg_backend_pid(), inet_client_addr() = inet_server_addr()")
                .fetch_one(&mut connection)
                .await?;
        Ok((is_here == Some(true) && is_postgres(own)).then_some(Self { connection }))
    }

    /// The server process of each session of one of these processes, and whose it is.
    pub(crate) async fn of(&mut self, processes: &[u32]) -> Result<BTreeMap<u32, u32>, Failure> {
        let sessions: Vec<(i32, i32)> = sqlx::query_as(
            "select pid, client_port
               from pg_stat_activity
              where client_port > 0 and client_addr = inet_server_addr() and pid <> pg_backend_pid()",
        )
        .fetch_all(&mut self.connection)
        .await?;
        let owners = owners_of_ports(processes);
        let owned = sessions.into_iter().filter_map(|(server_process, port)| {
            Some((u32::try_from(server_process).ok()?, *owners.get(&u16::try_from(port).ok()?)?))
        });
        Ok(owned.collect())
    }
}

/// A number may belong to anything if the server counts its processes apart, as in a container.
fn is_postgres(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("postgres"))
}

/// The process that has opened a connection from a port of this machine.
fn owners_of_ports(processes: &[u32]) -> BTreeMap<u16, u32> {
    let ports: BTreeMap<u64, u16> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| text.lines().filter_map(socket).collect::<Vec<_>>())
        .collect();
    let mut owners = BTreeMap::new();
    for &process in processes {
        for inode in sockets_of(process) {
            owners.extend(ports.get(&inode).map(|port| (*port, process)));
        }
    }
    owners
}

/// Inode and own port of an open connection.
fn socket(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_address, port) = fields.get(1)?.rsplit_once(':')?;
    let is_open = *fields.get(3)? == ESTABLISHED;
    let inode = fields.get(9)?.parse().ok()?;
    is_open.then_some((inode, u16::from_str_radix(port, 16).ok()?))
}

fn sockets_of(process: u32) -> BTreeSet<u64> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_connections_have_a_port() {
        let line = |state| format!("   0: 0100007F:DDC9 0100007F:1538 {state} 00000000:00000000 00:0 0 101 0 4223 1 x");
        assert_eq!(socket(&line("01")), Some((4223, 0xDDC9)));
        assert_eq!(socket(&line("0A")), None);
        assert_eq!(socket("  sl  local_address rem_address   st"), None);
    }

    #[tokio::test]
    async fn a_session_is_found_with_the_process_that_opened_it() {
        let database = cogo_test_support::empty_database().await;
        let mut looking = Sessions { connection: PgConnection::connect(&database.url).await.expect("a session") };
        let mut held = database.pool.acquire().await.expect("another session");
        let server_process: i32 =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *held).await.expect("a number");
        assert!(is_postgres(server_process) && !is_postgres(-1));
        let server_process = u32::try_from(server_process).expect("a number");
        let own = std::process::id();
        let sessions = looking.of(&[own]).await.expect("sessions");
        assert_eq!(sessions.get(&server_process), Some(&own));
        assert!(looking.of(&[]).await.expect("sessions").is_empty());
    }
}
