//! The registry as every process may read it, and the chores that keep it true.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    agents::Agent,
    registration::Registration,
    standing::Membership,
    store::{self, Beat, RegisterRow},
    usage::Usage,
};

/// Why the registry could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not answer or refused.
    #[error("Registry did not answer")]
    Database(#[source] sqlx::Error),
    /// Another run owns the slot, and this one may not take it.
    #[error("Slot is owned by {by}")]
    Occupied {
        /// Holder name of the owner.
        by: String,
    },
    /// The run has ended; only a new instance id can register.
    #[error("Instance {instance_id} has ended")]
    Ended {
        /// The run.
        instance_id: Uuid,
    },
    /// A row holds what this build does not know.
    #[error("Unexpected value in registry.{column} of instance {instance_id}")]
    Unexpected {
        /// Table and column.
        column: &'static str,
        /// Key of the row.
        instance_id: Uuid,
    },
}

/// What one sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct SweepOutcome {
    /// Whether it ran at all; false when another sweep was under way.
    pub swept: bool,
    /// Agents newly marked suspect.
    pub suspected: i32,
    /// Agents declared dead.
    pub died: i32,
    /// Agents that would be dead but for a guard.
    pub held_back: i32,
    /// Messages taken from the dead and queued again.
    pub requeued: i32,
}

/// The registry on a pool.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: PgPool,
}

impl Registry {
    /// The registry of the pool's database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Joins the fleet and takes over the slot at once; asking twice is the same as asking once.
    ///
    /// A process that lives on uses [`Heartbeat`](crate::Heartbeat) instead, which also registers.
    ///
    /// # Errors
    /// [`Error::Ended`] for an instance that ended before; [`Error::Database`].
    pub async fn register(&self, registration: &Registration) -> Result<Membership, Error> {
        self.join(registration, None).await
    }

    /// Joins again as a new instance, after `previous` lost its place; never takes the slot from anyone else.
    ///
    /// # Errors
    /// [`Error::Occupied`] when another run owns the slot; otherwise as [`register`](Self::register).
    pub async fn rejoin(&self, registration: &Registration, previous: Uuid) -> Result<Membership, Error> {
        self.join(registration, Some(previous)).await
    }

    async fn join(&self, registration: &Registration, previous: Option<Uuid>) -> Result<Membership, Error> {
        let row = store::register(&self.pool, registration, previous).await.map_err(Error::Database)?;
        joined(row, registration.id.instance_id)
    }

    /// Lets a registered run claim.
    ///
    /// # Errors
    /// [`Error::Ended`] for a run that is no longer there; [`Error::Database`].
    pub async fn activate(&self, instance_id: Uuid) -> Result<(), Error> {
        still_there(store::activate(&self.pool, instance_id).await, instance_id)
    }

    /// Tells a run to claim nothing until it is resumed.
    ///
    /// # Errors
    /// As [`activate`](Self::activate).
    pub async fn suspend(&self, instance_id: Uuid) -> Result<(), Error> {
        still_there(store::suspend(&self.pool, instance_id).await, instance_id)
    }

    /// Lets a suspended run claim again.
    ///
    /// # Errors
    /// As [`activate`](Self::activate).
    pub async fn resume(&self, instance_id: Uuid) -> Result<(), Error> {
        still_there(store::resume(&self.pool, instance_id).await, instance_id)
    }

    /// Tells a run to finish what it has and to leave.
    ///
    /// # Errors
    /// As [`activate`](Self::activate).
    pub async fn drain(&self, instance_id: Uuid) -> Result<(), Error> {
        still_there(store::drain(&self.pool, instance_id).await, instance_id)
    }

    /// One sign of life; `sequence` grows with each.
    ///
    /// # Errors
    /// [`Error::Ended`] for a run that is no longer there: it must stop claiming at once; [`Error::Database`].
    pub async fn beat(&self, membership: &Membership, sequence: i64, in_flight: i32) -> Result<(), Error> {
        let beat = Beat {
            instance_id: membership.instance_id,
            epoch: membership.epoch,
            sequence,
            ready: true,
            in_flight,
            usage: Usage::default(),
        };
        let row = store::beat(&self.pool, beat).await.map_err(Error::Database)?;
        if row.outcome == "alive" { Ok(()) } else { Err(Error::Ended { instance_id: membership.instance_id }) }
    }

    /// Ends a run and queues again what it still held; answers how many messages, none if it had ended before.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn deregister(&self, instance_id: Uuid, reason: &str) -> Result<Option<i32>, Error> {
        store::deregister(&self.pool, instance_id, reason).await.map_err(Error::Database)
    }

    /// Marks late agents suspect and declares the dead; safe to run anywhere, twice and at once.
    ///
    /// # Errors
    /// [`Error::Database`], also when `dead_after` is shorter than `suspect_after`.
    pub async fn sweep(&self, suspect_after: Duration, dead_after: Duration) -> Result<SweepOutcome, Error> {
        store::sweep(&self.pool, milliseconds(suspect_after), milliseconds(dead_after)).await.map_err(Error::Database)
    }

    /// Forgets up to `max_rows` runs that ended longer ago than `keep`; answers how many.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn retain(&self, keep: Duration, max_rows: i32) -> Result<i32, Error> {
        store::retain(&self.pool, milliseconds(keep), max_rows).await.map_err(Error::Database)
    }

    /// Every living agent, by name and slot.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn list(&self) -> Result<Vec<Agent>, Error> {
        store::living(&self.pool).await.map_err(Error::Database)?.into_iter().map(Agent::try_from).collect()
    }

    /// The runs that ended last, newest first.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn ended(&self, limit: u32) -> Result<Vec<Agent>, Error> {
        let rows = store::ended(&self.pool, i64::from(limit)).await.map_err(Error::Database)?;
        rows.into_iter().map(Agent::try_from).collect()
    }

    /// The active agents that can do something, by name and slot.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn discover(&self, capability: &str) -> Result<Vec<Agent>, Error> {
        let rows = store::discover(&self.pool, capability).await.map_err(Error::Database)?;
        rows.into_iter().map(Agent::try_from).collect()
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// Reads the answer to a registration.
pub(crate) fn joined(row: RegisterRow, instance_id: Uuid) -> Result<Membership, Error> {
    match row.outcome.as_str() {
        "registered" | "known" => Ok(Membership { instance_id, holder: row.holder, epoch: row.epoch }),
        "occupied" => Err(Error::Occupied { by: row.holder }),
        "ended" => Err(Error::Ended { instance_id }),
        _ => Err(Error::Unexpected { column: "register.outcome", instance_id }),
    }
}

fn still_there(answer: Result<Option<String>, sqlx::Error>, instance_id: Uuid) -> Result<(), Error> {
    match answer.map_err(Error::Database)?.as_deref() {
        None | Some("terminated") => Err(Error::Ended { instance_id }),
        Some(_) => Ok(()),
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
