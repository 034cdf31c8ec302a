//! Whether what a circumstance is made of fits on the disk of the server.

use std::path::Path;

use sqlx::PgConnection;

use crate::failure::Failure;

/// Bytes of a finished message with a small payload, its index entries included; pages are half full by design.
const ROW_BYTES: u64 = 700;
/// Bytes of a message of the measurement itself.
const MEASURED_BYTES: u64 = 1100;
/// What must stay free for everybody else.
const RESERVE: u64 = 1 << 30;
const MEBIBYTE: u64 = 1 << 20;

/// Refuses when so many rows of a circumstance and messages of the measurement would not fit. Answers what could not be
/// found out.
pub(crate) async fn ensure_room(
    connection: &mut PgConnection,
    rows: u64,
    measured: u64,
) -> Result<Option<String>, Failure> {
    let facts: Option<(String, i64, bool)> = sqlx::query_as(
        "select d.setting, pg_size_bytes(current_setting('max_wal_size')),
                inet_server_addr() is not distinct from inet_client_addr()
           from pg_settings d where d.name = 'data_directory'",
    )
    .fetch_optional(connection)
    .await?;
    let Some((directory, log_bytes, is_here)) = facts else {
        return Ok(Some(
            "this account may not know where the server keeps its data; its disk was not looked at".into(),
        ));
    };
    if !is_here {
        return Ok(Some("the server is on another machine; its disk was not looked at".into()));
    }
    let needed = rows * ROW_BYTES + measured * MEASURED_BYTES + log_bytes.unsigned_abs() + RESERVE;
    match rustix::fs::statvfs(Path::new(&directory)) {
        Ok(disk) => fits(needed, disk.f_bavail.saturating_mul(disk.f_frsize)).map(|()| None),
        Err(error) => Ok(Some(format!("the disk of {directory} was not looked at: {error}"))),
    }
}

fn fits(needed: u64, free: u64) -> Result<(), Failure> {
    if needed <= free {
        return Ok(());
    }
    let (needed, free) = (needed.div_ceil(MEBIBYTE), free / MEBIBYTE);
    Err(Failure::conflict(format!("The measurement needs {needed} MiB of disk and {free} MiB are free"))
        .hint("free some space, or make it smaller with --finished, --delayed and --messages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_sizes() {
        assert_eq!(fits(5 * MEBIBYTE, 5 * MEBIBYTE), Ok(()));
        let refused = fits(7 * MEBIBYTE, 5 * MEBIBYTE).expect_err("too large").text();
        assert!(refused.contains("7 MiB") && refused.contains("5 MiB"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_of_this_machine_is_asked_for_its_disk() {
        let database = cogo_test_support::database().await;
        let mut connection = database.pool.acquire().await.expect("a connection");
        let next_to_nothing = ensure_room(&mut connection, 0, 0).await;
        assert!(!matches!(next_to_nothing, Ok(Some(_))), "it can be looked at, full or not: {next_to_nothing:?}");
        let refused = ensure_room(&mut connection, 1 << 40, 0).await.expect_err("more than any disk has");
        assert_eq!(refused.kind, crate::failure::Kind::Conflict);
    }
}
