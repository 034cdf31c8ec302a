//! The account at the end of a chaos run: every call that was noted against every row that is there.

use std::{collections::BTreeSet, fs, path::Path};

use cogo_bus_check::{Call, Operation, Outcome, Report, Rest, Rows, check, read_journal};
use cogo_registry_core::Registry;
use sqlx::PgPool;

use super::owners::{Act, Owner, two_owner_moments};
use crate::failure::{Failure, about_file};

/// Rows of the log that are read at once.
const PAGE: u32 = 1_000;

/// What a run came to, once everything is at rest.
#[derive(Debug)]
pub(crate) struct Account {
    /// What the checker of the bus found.
    pub(crate) report: Report,
    pub(crate) effects: Effects,
    pub(crate) two_owner_moments: Vec<String>,
    /// Messages that are done.
    pub(crate) done: usize,
    /// Dead letters; nothing here fails by itself.
    pub(crate) failed: usize,
    /// Attempts that were taken from those who held them.
    pub(crate) taken_back: usize,
}

/// What the rows tell that handlers wrote together with their completions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Effects {
    /// Messages with more than one.
    pub(crate) doubled: i64,
    /// Messages that are done and have none of the attempt that is recorded.
    pub(crate) missing: i64,
    /// Written by one who did not own its slot, and nobody else did.
    pub(crate) unowned: i64,
    /// Written by one whose slot another owned.
    pub(crate) foreign: i64,
}

/// Reads everything and judges; nobody may be at work any more.
pub(crate) async fn settle(pool: &PgPool, sent: Vec<Call>, journals: &Path) -> Result<Account, Failure> {
    let rows = Rows::load(pool).await?;
    let mut calls = sent;
    calls.extend(read_journals(journals)?);
    let holders: BTreeSet<&str> = rows.attempts.iter().map(|attempt| attempt.holder.as_str()).collect();
    calls.extend(holders.into_iter().map(unnoted));
    calls.sort_by_key(|call| call.invoked_us);
    let attempts = attempts(pool).await?;
    let mut acts: Vec<Act> =
        attempts.iter().map(|(holder, at_us)| Act { holder: holder.clone(), what: "a claim", at_us: *at_us }).collect();
    for row in &rows.messages {
        let Some(holder) = &row.claimed_by else { continue };
        let act = |what, at_us| Act { holder: holder.clone(), what, at_us };
        acts.extend(row.claimed_us.map(|at_us| act("a claim", at_us)));
        acts.extend(row.done_us.filter(|_| row.status == "done").map(|at_us| act("a completion", at_us)));
    }
    let with_status = |status: &str| rows.messages.iter().filter(|row| row.status == status).count();
    Ok(Account {
        report: check(&calls, &rows, Rest::Drained),
        effects: effects(pool).await?,
        two_owner_moments: two_owner_moments(&owners(pool).await?, &acts),
        done: with_status("done"),
        failed: with_status("failed"),
        taken_back: attempts.len(),
    })
}

/// A claim that its process did not live to note: it does so only when a handler begins.
fn unnoted(holder: &str) -> Call {
    Call {
        process: holder.to_owned(),
        number: 0,
        invoked_us: 0,
        client_ms: 0,
        operation: Operation::Claim { holder: holder.to_owned(), lease_ms: 0 },
        outcome: Outcome::Unknown("what was claimed before a handler began is not noted".to_owned()),
        returned_us: None,
    }
}

fn read_journals(directory: &Path) -> Result<Vec<Call>, Failure> {
    let mut calls = Vec::new();
    for entry in fs::read_dir(directory).map_err(about_file("read", directory))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        calls.extend(read_journal(&name, &path).map_err(about_file("read", &path))?);
    }
    Ok(calls)
}

/// Everyone who ever owned a slot, from the log that is never changed.
async fn owners(pool: &PgPool) -> Result<Vec<Owner>, Failure> {
    let registry = Registry::new(pool.clone());
    let mut owners = Vec::new();
    let mut seen = 0;
    loop {
        let changes = registry.log(seen, PAGE).await?;
        let Some(last) = changes.last() else { return Ok(owners) };
        seen = last.version;
        let joined = changes.into_iter().filter(|change| change.from == "registering");
        owners.extend(joined.map(|change| Owner {
            holder: change.holder,
            epoch: change.epoch,
            since_us: change.at.timestamp_micros(),
        }));
    }
}

/// Attempts that did not complete: who had them, and since when.
async fn attempts(pool: &PgPool) -> Result<Vec<(String, i64)>, Failure> {
    let attempts = sqlx::query_as(
        "select a.holder, (extract(epoch from a.started_at) * 1000000)::bigint
           from bus.attempts a where a.started_at is not null",
    );
    Ok(attempts.fetch_all(pool).await?)
}

async fn effects(pool: &PgPool) -> Result<Effects, Failure> {
    let effects = sqlx::query_as(
        "select (select count(*) from (select from chaos.effects e group by e.message_id having count(*) > 1) as d)
                  as doubled,
                (select count(*) from public.agent_messages m
                  where m.status = 'done' and (m.payload ->> 'effect')::boolean
                    and not exists (select from chaos.effects e
                                     where e.message_id = m.id and e.attempt = m.attempts
                                       and e.holder = m.claimed_by)) as missing,
                (select count(*) from chaos.effects e where e.owner is null) as unowned,
                (select count(*) from chaos.effects e where e.owner <> e.holder) as foreign",
    );
    Ok(effects.fetch_one(pool).await?)
}
