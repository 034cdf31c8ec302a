//! What a process and the registry say to each other: join, beat, leave.

use chrono::{DateTime, Utc};
use cogo_contracts::AgentState;
use sqlx::{PgConnection, PgPool};
use tracing::info;
use uuid::Uuid;

use crate::{
    heartbeat::HeartbeatSettings,
    link::Link,
    registration::Registration,
    registry::{Error, joined, registering},
    standing::{Membership, Vitals, Wanted},
    store::{self, Beat, Stats},
    usage::UsageMeter,
};

/// What the registry answered.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The run is a member in this state.
    Alive { membership: Membership, state: AgentState, told: Told },
    /// The run has ended; the next exchange joins as a new one.
    Lost { reason: String },
    /// Another process owns the slot.
    Occupied { by: String },
}

/// What an answer tells beside the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) registry_version: i64,
    pub(crate) config_version: Option<i64>,
    pub(crate) schema_version: Option<i64>,
    pub(crate) database_time: DateTime<Utc>,
}

/// One process's side of the talk, without its timing.
#[derive(Debug)]
pub(crate) struct Conversation {
    link: Link,
    registration: Registration,
    membership: Option<Membership>,
    previous: Option<Uuid>,
    asked_to_join: bool,
    sequence: i64,
    meter: UsageMeter,
}

impl Conversation {
    pub(crate) fn new(pool: &PgPool, registration: Registration, settings: &HeartbeatSettings) -> Self {
        Self {
            link: Link::new(pool, settings.deadline),
            registration,
            membership: None,
            previous: None,
            asked_to_join: false,
            sequence: 0,
            meter: UsageMeter::new(),
        }
    }

    pub(crate) fn is_member(&self) -> bool {
        self.membership.is_some()
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Joins or beats, and moves on to the wanted state. May be dropped at any await: all of it can be said again.
    pub(crate) async fn exchange(&mut self, wanted: Wanted, vitals: &Vitals) -> Result<Reply, Error> {
        let mut connection = self.link.take().await.map_err(Error::Database)?;
        let reply = match self.membership.clone() {
            None => self.join(&mut connection).await?,
            Some(membership) => self.beat(&mut connection, membership, vitals).await?,
        };
        let reply = self.move_on(&mut connection, reply, wanted).await?;
        self.link.give_back(connection);
        Ok(reply)
    }

    /// Ends the membership, or what may have become one if an answer was lost on the way.
    pub(crate) async fn leave(&mut self, reason: &str) -> Result<(), Error> {
        if !self.asked_to_join {
            return Ok(());
        }
        let mut connection = self.link.take().await.map_err(Error::Database)?;
        let instance_id = self.registration.id.instance_id;
        let requeued = store::deregister(&mut connection, instance_id, reason).await.map_err(Error::Database)?;
        self.membership = None;
        info!(agent = %self.registration.id, requeued, "left the registry");
        Ok(())
    }

    async fn join(&mut self, connection: &mut PgConnection) -> Result<Reply, Error> {
        // set before asking: once asked, the registration may stand even if the answer never arrives
        self.asked_to_join = true;
        let row = store::register(&mut *connection, &self.registration, self.previous).await.map_err(registering)?;
        let state = row.state.clone();
        let told = Told {
            registry_version: row.registry_version,
            config_version: None,
            schema_version: None,
            database_time: row.database_time,
        };
        match joined(row, self.registration.id.instance_id) {
            Ok(membership) => {
                info!(agent = %self.registration.id, holder = membership.holder, epoch = membership.epoch, "registered");
                self.join_carried(connection, membership.instance_id).await?;
                self.membership = Some(membership.clone());
                self.alive(membership, &state, told)
            }
            Err(Error::Ended { .. }) => Ok(self.lost("ended before it knew that it was registered".to_owned())),
            Err(Error::Occupied { by }) => Ok(Reply::Occupied { by }),
            Err(error) => Err(error),
        }
    }

    /// Joins for the agents that live in the same process, each as a new run.
    async fn join_carried(&mut self, connection: &mut PgConnection, carrier: Uuid) -> Result<(), Error> {
        for carried in &mut self.registration.carried {
            // one that has joined this carrier already, before an answer was lost, is known and stays
            if carried.carrier != Some(carrier) {
                carried.renew();
                carried.carrier = Some(carrier);
            }
            let mut row = store::register(&mut *connection, carried, None).await.map_err(registering)?;
            if row.outcome == "ended" {
                carried.renew();
                row = store::register(&mut *connection, carried, None).await.map_err(registering)?;
            }
            let instance_id = carried.id.instance_id;
            joined(row, instance_id)?;
            store::activate(&mut *connection, instance_id).await.map_err(Error::Database)?;
        }
        Ok(())
    }

    async fn beat(
        &mut self,
        connection: &mut PgConnection,
        membership: Membership,
        vitals: &Vitals,
    ) -> Result<Reply, Error> {
        self.sequence += 1;
        let beat = Beat {
            instance_id: membership.instance_id,
            epoch: membership.epoch,
            sequence: self.sequence,
            ready: vitals.ready(),
            in_flight: vitals.in_flight(),
            stats: Stats { usage: self.meter.read(), carried: vitals.carried() },
        };
        let row = store::beat(connection, beat).await.map_err(Error::Database)?;
        let told = Told {
            registry_version: row.registry_version,
            config_version: Some(row.config_version),
            schema_version: Some(row.schema_version),
            database_time: row.database_time,
        };
        match (row.outcome.as_str(), row.state) {
            ("alive", Some(state)) => self.alive(membership, &state, told),
            ("ended", _) => Ok(self.lost(row.end_reason.unwrap_or_default())),
            // forgotten long after its end, or the database was restored from a time before it registered
            ("unknown", _) => Ok(self.lost("not in the registry any more".to_owned())),
            _ => Err(Error::Unexpected { column: "beat.outcome", instance_id: membership.instance_id }),
        }
    }

    async fn move_on(&mut self, connection: &mut PgConnection, reply: Reply, wanted: Wanted) -> Result<Reply, Error> {
        let Reply::Alive { membership, state, told } = reply else {
            return Ok(reply);
        };
        let answer = match (wanted, state) {
            (Wanted::Active, AgentState::Registered) => store::activate(connection, membership.instance_id).await,
            (
                Wanted::Draining,
                AgentState::Registered | AgentState::Active | AgentState::Suspect | AgentState::Suspended,
            ) => store::drain(connection, membership.instance_id).await,
            _ => return Ok(Reply::Alive { membership, state, told }),
        };
        match answer.map_err(Error::Database)? {
            Some(state) if state != AgentState::Terminated.as_str() => self.alive(membership, &state, told),
            _ => Ok(self.lost("ended between two calls".to_owned())),
        }
    }

    fn alive(&self, membership: Membership, state: &str, told: Told) -> Result<Reply, Error> {
        let instance_id = membership.instance_id;
        let state = AgentState::from_name(state).ok_or(Error::Unexpected { column: "agents.state", instance_id })?;
        Ok(Reply::Alive { membership, state, told })
    }

    fn lost(&mut self, reason: String) -> Reply {
        self.membership = None;
        self.asked_to_join = false;
        self.previous = Some(self.registration.renew());
        Reply::Lost { reason }
    }
}
