//! A place in the registry that a process holds for an agent that reaches it over a connection: it rides on the process's
//! beat like an agent in the process itself, and its tokens live as long as that beat does.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    key::AgentKey,
    registration::Registration,
    registry::{Error, Registry},
    standing::{Member, Membership},
    store,
    token::{Grant, Refused, TokenClaims, verify_token},
};

/// The place of one such agent.
#[derive(Debug)]
pub struct Seat {
    registration: Registration,
    membership: Membership,
    carrier: Uuid,
}

impl Registry {
    /// Whether this is a living key of an agent of this name. A name without keys is opened by none.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn key_opens(&self, name: &str, key: &AgentKey) -> Result<bool, Error> {
        store::key_opens(self.pool(), name, &key.proof().0).await.map_err(Error::Database)
    }

    /// Registers an agent as one that rides with a run, and lets it be given work at once.
    ///
    /// # Errors
    /// As [`register`](Self::register); [`Error::CarrierGone`] when the run has ended.
    pub async fn seat(&self, registration: Registration, carrier: Uuid) -> Result<Seat, Error> {
        let registration = registration.carried_by(carrier);
        let membership = self.register(&registration).await?;
        self.activate(membership.instance_id).await?;
        Ok(Seat { registration, membership, carrier })
    }
}

impl Seat {
    /// The run that sits there.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The agent as `name/slot`.
    #[must_use]
    pub fn instance(&self) -> String {
        self.registration.id().instance()
    }

    /// The run with which it rides, and ends.
    #[must_use]
    pub fn carrier(&self) -> Uuid {
        self.carrier
    }

    /// Whether a token was made for this run and this audience, and is good at `now`.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, token: &str, audience: &str, now: DateTime<Utc>) -> Result<TokenClaims, Refused> {
        let claims = verify_token(token, &self.registration.signer.public_key(), audience, now)?;
        if claims.inst != self.membership.instance_id || claims.sub != self.instance() {
            return Err(Refused::NotLiving);
        }
        Ok(claims)
    }
}

impl Member {
    /// A token that says who sits in a seat of this process, for one audience. It ends a minute after the last good beat
    /// of this process; none while that has no place in the fleet.
    #[must_use]
    pub fn token_for(&self, seat: &Seat, audience: &str) -> Option<String> {
        let granted = self.grant.load();
        let own = granted.as_deref().filter(|own| own.membership.instance_id == seat.carrier)?;
        let grant = Grant {
            signer: std::sync::Arc::clone(&seat.registration.signer),
            instance: seat.instance(),
            membership: seat.membership.clone(),
            at: own.at,
        };
        Some(grant.token(audience))
    }

    /// What the database's clock shows, as far as the last good beat tells; none while the process has no place.
    #[must_use]
    pub fn database_now(&self) -> Option<DateTime<Utc>> {
        let at = self.grant.load().as_deref()?.at;
        let asked = self.heard.borrow().as_ref()?.asked;
        Some(at + TimeDelta::from_std(asked.elapsed()).ok()?)
    }
}
