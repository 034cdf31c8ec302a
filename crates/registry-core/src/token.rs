//! Short-lived tokens: a JWT (RFC 7519) signed with EdDSA (RFC 8037) by the run itself, whose public key the registry holds.
//!
//! Nobody shares a secret. The heartbeat renews what a token may say, so that a run that lost its place cannot go on
//! making them, and whoever verifies one looks the run up in its copy of the registry: once that knows of a newer epoch,
//! the tokens of the older one are dead, however long they were meant to live.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    entry::Entry,
    standing::Membership,
    view::{Stale, View},
};

/// Who signs.
const ISSUER: &str = "cogo";
/// `{"alg":"EdDSA","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9";
/// How long a token lives after the beat by which it was made: twice the time after which a silent run is dead.
const LIFE: TimeDelta = TimeDelta::seconds(60);
/// A token that claims to live longer than this is refused, whoever signed it.
const LONGEST_LIFE: TimeDelta = TimeDelta::minutes(15);
/// How far two readings of the database's clock may differ.
const LEEWAY: TimeDelta = TimeDelta::seconds(5);
/// No token of ours is longer.
const LONGEST_TOKEN: usize = 2048;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenClaims {
    /// Always `cogo`.
    pub iss: String,
    /// The agent as `name/slot`.
    pub sub: String,
    /// Whom the token is meant for.
    pub aud: String,
    /// The run.
    pub inst: Uuid,
    /// Epoch of the run.
    pub epoch: i64,
    /// When it was made, in seconds since 1970 by the database clock.
    pub iat: i64,
    /// When it ends, in the same seconds.
    pub exp: i64,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a token of the form that agents make.
    #[error("Malformed token")]
    Malformed,
    /// The signature is not that of the run.
    #[error("Signature of the token does not fit")]
    Signature,
    /// Its time is over, has not come, or is longer than allowed.
    #[error("Time of the token is over or not allowed")]
    Time,
    /// Made for somebody else.
    #[error("Token is meant for another audience")]
    Audience,
    /// A newer run owns the slot.
    #[error("Token is of epoch {epoch}, the slot is at {newest}")]
    Superseded {
        /// Epoch of the token.
        epoch: i64,
        /// Epoch of the owner.
        newest: i64,
    },
    /// No living run of this id.
    #[error("Run of the token is not in the registry")]
    NotLiving,
    /// The copy of the registry is too old to judge from.
    #[error("The copy of the registry is too old to judge a token")]
    Stale(#[source] Stale),
}

/// The key of one run, made in its process and never leaving it.
pub(crate) struct Signer(Ed25519KeyPair);

impl Signer {
    pub(crate) fn new() -> Self {
        let mut seed = [0_u8; 32];
        SystemRandom::new().fill(&mut seed).expect("the operating system gives random numbers");
        Self(Ed25519KeyPair::from_seed_unchecked(&seed).expect("every seed of 32 bytes is a key"))
    }

    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }

    fn sign(&self, claims: &TokenClaims) -> String {
        let body = serde_json::to_vec(claims).expect("claims are plain text and numbers");
        let signed = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(body));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signer(***)")
    }
}

/// What the last good beat lets the run say about itself.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) signer: Arc<Signer>,
    pub(crate) instance: String,
    pub(crate) membership: Membership,
    pub(crate) at: DateTime<Utc>,
}

impl Grant {
    pub(crate) fn token(&self, audience: &str) -> String {
        self.signer.sign(&TokenClaims {
            iss: ISSUER.to_owned(),
            sub: self.instance.clone(),
            aud: audience.to_owned(),
            inst: self.membership.instance_id,
            epoch: self.membership.epoch,
            iat: self.at.timestamp(),
            exp: (self.at + LIFE).timestamp(),
        })
    }
}

impl View {
    /// Whether a token is that of a living run, made for this audience and still good. Asks no database.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, token: &str, audience: &str) -> Result<(TokenClaims, Arc<Entry>), Refused> {
        let said = unverified(token)?.0;
        let answer = self.look(|snapshot| (snapshot.run(said.inst).cloned(), snapshot.owner(&said.sub).cloned()));
        let (run, owner) = answer.map_err(Refused::Stale)?.value;
        let Some(run) = run else {
            return Err(match owner {
                Some(owner) if owner.epoch > said.epoch => {
                    Refused::Superseded { epoch: said.epoch, newest: owner.epoch }
                }
                _ => Refused::NotLiving,
            });
        };
        let now = self.database_now().ok_or(Refused::Time)?;
        let public_key = run.public_key.ok_or(Refused::Signature)?;
        let claims = verify_token(token, &public_key, audience, now)?;
        if (claims.epoch, claims.sub.as_str()) != (run.epoch, run.id.instance().as_str()) {
            return Err(Refused::Superseded { epoch: claims.epoch, newest: run.epoch });
        }
        Ok((claims, run))
    }
}

/// Whether a token was signed with this key, for this audience, and is good at `now`. Says nothing about whether its
/// run still lives: that only [`View::verify`] knows.
///
/// # Errors
/// Why it is not believed.
pub fn verify_token(
    token: &str,
    public_key: &[u8; 32],
    audience: &str,
    now: DateTime<Utc>,
) -> Result<TokenClaims, Refused> {
    let (claims, signed, signature) = unverified(token)?;
    let key = UnparsedPublicKey::new(&ED25519, public_key);
    key.verify(signed.as_bytes(), &signature).map_err(|_| Refused::Signature)?;
    let made = DateTime::from_timestamp(claims.iat, 0).ok_or(Refused::Time)?;
    let ends = DateTime::from_timestamp(claims.exp, 0).ok_or(Refused::Time)?;
    if now >= ends || made > now + LEEWAY || ends - made > LONGEST_LIFE {
        return Err(Refused::Time);
    }
    if claims.aud != audience {
        return Err(Refused::Audience);
    }
    Ok(claims)
}

/// What a token says, its signed part and its signature, none of it to be believed yet.
fn unverified(token: &str) -> Result<(TokenClaims, &str, Vec<u8>), Refused> {
    let malformed = || Refused::Malformed;
    if token.len() > LONGEST_TOKEN {
        return Err(malformed());
    }
    let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    // the one header that we make: what else might stand there, such as alg none, is not even looked at
    let body = signed.strip_prefix(HEADER).and_then(|rest| rest.strip_prefix('.')).ok_or_else(malformed)?;
    let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| malformed())?;
    let claims: TokenClaims = serde_json::from_slice(&body).map_err(|_| malformed())?;
    if claims.iss != ISSUER {
        return Err(malformed());
    }
    Ok((claims, signed, URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn grant() -> Grant {
        let instance_id = Uuid::now_v7();
        let membership = Membership { instance_id, holder: "rag-embed/0#x".to_owned(), epoch: 3 };
        Grant { signer: Arc::new(Signer::new()), instance: "rag-embed/0".to_owned(), membership, at: at(0) }
    }

    #[test]
    fn a_token_is_good_for_its_key_its_audience_and_its_time() {
        let grant = grant();
        let (token, key) = (grant.token("gateway"), grant.signer.public_key());
        let claims = verify_token(&token, &key, "gateway", at(59)).unwrap();
        assert_eq!((claims.epoch, claims.inst), (3, grant.membership.instance_id));
        assert_eq!(verify_token(&token, &key, "gateway", at(60)), Err(Refused::Time));
        assert_eq!(verify_token(&token, &key, "gateway", at(-6)), Err(Refused::Time));
        assert_eq!(verify_token(&token, &key, "other", at(1)), Err(Refused::Audience));
        assert_eq!(verify_token(&token, &Signer::new().public_key(), "gateway", at(1)), Err(Refused::Signature));
    }

    #[test]
    fn what_was_tampered_with_is_refused() {
        let grant = grant();
        let (token, key) = (grant.token("gateway"), grant.signer.public_key());
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let mut claims = unverified(&token).unwrap().0;
        claims.epoch = 4;
        parts[1] = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap());
        assert_eq!(verify_token(&parts.join("."), &key, "gateway", at(1)), Err(Refused::Signature));
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#), parts[1]);
        for bad in ["", "a.b.c", &unsigned, &token[..token.len() - 90], &"x".repeat(5000)] {
            assert!(matches!(verify_token(bad, &key, "gateway", at(1)), Err(Refused::Malformed | Refused::Signature)));
        }
    }

    #[test]
    fn a_run_cannot_give_itself_a_long_life() {
        let grant = grant();
        let mut claims = unverified(&grant.token("gateway")).unwrap().0;
        claims.exp = claims.iat + 3600;
        let token = grant.signer.sign(&claims);
        assert_eq!(verify_token(&token, &grant.signer.public_key(), "gateway", at(1)), Err(Refused::Time));
    }

    #[test]
    fn the_header_is_what_it_says() {
        assert_eq!(URL_SAFE_NO_PAD.decode(HEADER).unwrap(), br#"{"alg":"EdDSA","typ":"JWT"}"#);
    }
}
