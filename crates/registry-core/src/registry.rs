//! The registry as every process may read it, and the chores that keep it true.

use std::time::Duration;

use cogo_contracts::AgentState;
use serde::Serialize;
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::{
    agents::Agent,
    change::Change,
    key::AgentKey,
    reading,
    registration::Registration,
    snapshot::Snapshot,
    standing::Membership,
    store::{self, Beat, RegisterRow, Stats},
    target::Target,
};

/// The SQLSTATE by which the database refuses a key: invalid authorization specification.
const WRONG_KEY: &str = "28000";

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
    /// The agent in whose process it wants to live is not there, or lives in another's itself.
    #[error("The carrier of instance {instance_id} is not in the registry")]
    CarrierGone {
        /// The run that wanted to join.
        instance_id: Uuid,
    },
    /// The name joins with a key only, and none or a wrong one was shown.
    #[error("The registry refuses the agent key")]
    KeyRefused,
    /// No agent of this id, or no living one in this slot.
    #[error("No agent {target}")]
    NoSuchAgent {
        /// What was asked for.
        target: String,
    },
    /// The agent is in a state from which that is not possible.
    #[error("Cannot {wish} {holder}, which is {state}")]
    NotAllowed {
        /// suspend, resume or drain.
        wish: &'static str,
        /// The agent.
        holder: String,
        /// The state that it is in.
        state: String,
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

/// What became of an order to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// The agent.
    pub membership: Membership,
    /// Its state before; the same as now if it had been there already.
    pub before: AgentState,
    /// Its state now.
    pub state: AgentState,
    /// Version of the registry in which that stands.
    pub registry_version: i64,
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
        let row = store::register(&self.pool, registration, previous).await.map_err(registering)?;
        joined(row, registration.id.instance_id)
    }

    /// Lets a registered run claim.
    ///
    /// # Errors
    /// [`Error::Ended`] for a run that is no longer there; [`Error::Database`].
    pub async fn activate(&self, instance_id: Uuid) -> Result<(), Error> {
        match store::activate(&self.pool, instance_id).await.map_err(Error::Database)?.as_deref() {
            None | Some("terminated") => Err(Error::Ended { instance_id }),
            Some(_) => Ok(()),
        }
    }

    /// Tells an agent to claim nothing until it is resumed. It stays in the registry and goes on beating.
    ///
    /// # Errors
    /// [`Error::NoSuchAgent`]; [`Error::NotAllowed`] for one that is not active; [`Error::Database`].
    pub async fn suspend(&self, target: impl Into<Target>) -> Result<Ordered, Error> {
        self.order("suspend", target.into()).await
    }

    /// Lets a suspended agent claim again.
    ///
    /// # Errors
    /// [`Error::NoSuchAgent`]; [`Error::NotAllowed`] for one that is not suspended; [`Error::Database`].
    pub async fn resume(&self, target: impl Into<Target>) -> Result<Ordered, Error> {
        self.order("resume", target.into()).await
    }

    /// Tells an agent to finish what it has and to leave; its process then ends.
    ///
    /// # Errors
    /// [`Error::NoSuchAgent`]; [`Error::NotAllowed`] for one that has ended; [`Error::Database`].
    pub async fn drain(&self, target: impl Into<Target>) -> Result<Ordered, Error> {
        self.order("drain", target.into()).await
    }

    async fn order(&self, wish: &'static str, target: Target) -> Result<Ordered, Error> {
        let row = store::order(&self.pool, wish, &target).await.map_err(Error::Database)?;
        let Some(row) = row else {
            return Err(Error::NoSuchAgent { target: target.to_string() });
        };
        if !row.accepted {
            return Err(Error::NotAllowed { wish, holder: row.holder, state: row.state });
        }
        let state = |name: &str| {
            let unexpected = Error::Unexpected { column: "agents.state", instance_id: row.run };
            AgentState::from_name(name).ok_or(unexpected)
        };
        let (before, state) = (state(&row.before)?, state(&row.state)?);
        let membership = Membership { instance_id: row.run, holder: row.holder, epoch: row.epoch };
        Ok(Ordered { membership, before, state, registry_version: row.registry_version })
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
            stats: Stats::default(),
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

    /// For how long a sweep with this `suspect_after` will find nothing to do, by a connection of the caller's: nobody can
    /// be silent for so long before. A short question that writes nothing. Whoever goes by it sweeps several times within
    /// `dead_after` all the same: a sweep after a long pause first waits for beats.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn all_well_for(executor: impl PgExecutor<'_>, suspect_after: Duration) -> Result<Duration, Error> {
        let (silence_ms, ended_lately) = store::longest_silence(executor).await.map_err(Error::Database)?;
        // one that joins later beats later
        let silence = Duration::from_millis(silence_ms.map_or(0, |ms| u64::try_from(ms).unwrap_or(0)));
        Ok(if ended_lately { Duration::ZERO } else { suspect_after.saturating_sub(silence) })
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

    /// Up to `most` changes after a version, oldest first; what was said of runs that have been forgotten is gone.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn log(&self, after: i64, most: u32) -> Result<Vec<Change>, Error> {
        reading::log(&self.pool, after, i64::from(most)).await
    }

    /// The living agents at one version, read from the database; a [`Follower`](crate::Follower) keeps such a copy
    /// current.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(reading::whole(&self.pool, &Snapshot::default()).await?.snapshot)
    }

    /// Makes a key by which a process of this name may join; from now on the name joins with a key only,
    /// until [`open_name`](Self::open_name).
    ///
    /// # Errors
    /// [`Error::Database`], also for a name or label that the database refuses.
    pub async fn issue_key(&self, name: &str, label: &str) -> Result<(Uuid, AgentKey), Error> {
        let key = AgentKey::generate();
        let hash = key.proof().hash();
        let key_id = store::issue_key(&self.pool, name, &hash, label).await.map_err(Error::Database)?;
        Ok((key_id, key))
    }

    /// Takes a key back; who is in stays in, as [`revoke_key_and_end`](Self::revoke_key_and_end) does not have it. False
    /// if it opened nothing before.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn revoke_key(&self, key_id: Uuid) -> Result<bool, Error> {
        store::revoke_key(&self.pool, key_id).await.map_err(Error::Database)
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
        "carrier_gone" => Err(Error::CarrierGone { instance_id }),
        "ended" => Err(Error::Ended { instance_id }),
        _ => Err(Error::Unexpected { column: "register.outcome", instance_id }),
    }
}

/// A refusal of a key is told apart from a database that does not answer.
pub(crate) fn registering(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|refusal| refusal.code());
    if code.as_deref() == Some(WRONG_KEY) { Error::KeyRefused } else { Error::Database(error) }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
