//! Standing orders: what operators put down or suspended and did not take back, kept where every later run finds it.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::Error;

/// In place of a fleet: every process of that name.
const EVERYONE: i32 = -1;

/// The standing orders on a database.
#[derive(Debug, Clone)]
pub struct StandingOrders {
    pool: PgPool,
}

/// What an order is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Subject {
    /// Every process of a domain.
    Domain {
        /// Its name.
        domain: String,
    },
    /// Every instance of a process.
    Process {
        /// The domain that it is in.
        domain: String,
        /// Its name.
        process: String,
    },
    /// One instance of a process.
    Instance {
        /// The domain that it is in.
        domain: String,
        /// Name of its process.
        process: String,
        /// Its slot.
        slot: u32,
    },
}

/// What shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderedState {
    /// It is not started. For one fleet, told from others on the database by the first slot of its `cogo up`.
    Drained,
    /// It runs and claims nothing, wherever it is started.
    Suspended,
}

/// An order as somebody gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOrder {
    /// What it is about.
    pub subject: Subject,
    /// First slot of the fleet to be drained; none to suspend on every machine.
    pub fleet: Option<u16>,
    /// Who gives it, as in `user@host`; 200 characters at most.
    pub by: String,
    /// Why, 400 characters at most.
    pub reason: Option<String>,
    /// Version of the order about the same that is known; 0 for none.
    pub known_version: i64,
}

/// An order that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingOrder {
    /// What it is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// First slot of the fleet that it is for; none: everyone.
    pub fleet: Option<u16>,
    /// What shall be.
    pub wish: OrderedState,
    /// Counts its changes.
    pub version: i64,
    /// When it was given, by the database clock.
    pub at: DateTime<Utc>,
    /// Who gave it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

#[derive(sqlx::FromRow)]
struct OrderRow {
    kind: String,
    name: String,
    fleet: i32,
    domain: String,
    wish: String,
    version: i64,
    ordered_at: DateTime<Utc>,
    ordered_by: String,
    reason: Option<String>,
}

impl Subject {
    /// `rag`, `rag-embed` or `rag-embed/1`, as people name it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Domain { domain } => domain.clone(),
            Self::Process { process, .. } => process.clone(),
            Self::Instance { process, slot, .. } => format!("{process}/{slot}"),
        }
    }

    /// The domain that it is in, or is.
    #[must_use]
    pub fn domain(&self) -> &str {
        match self {
            Self::Domain { domain } | Self::Process { domain, .. } | Self::Instance { domain, .. } => domain,
        }
    }

    /// Whether the other is a part of it, or it itself.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Domain { domain }, _) => domain == other.domain(),
            (
                Self::Process { process, .. },
                Self::Process { process: its, .. } | Self::Instance { process: its, .. },
            ) => process == its,
            (Self::Instance { .. }, Self::Instance { .. }) => self.name() == other.name(),
            (Self::Process { .. } | Self::Instance { .. }, _) => false,
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Domain { .. } => "domain",
            Self::Process { .. } => "process",
            Self::Instance { .. } => "instance",
        }
    }
}

impl StandingOrder {
    /// Whether it holds for a fleet whose first slot is this.
    #[must_use]
    pub fn is_for(&self, first_slot: u32) -> bool {
        self.fleet.is_none_or(|fleet| u32::from(fleet) == first_slot)
    }
}

impl fmt::Display for StandingOrder {
    /// As in `rag-embed/1: drained by ada@host since 2026-11-21 10:02:29 UTC (disk is full)`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wish = match self.wish {
            OrderedState::Drained => "drained",
            OrderedState::Suspended => "suspended",
        };
        let at = self.at.format("%Y-%m-%d %H:%M:%S");
        write!(formatter, "{}: {wish} by {} since {at} UTC", self.subject.name(), self.by)?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(formatter, " ({reason})"))
    }
}

impl StandingOrders {
    /// Those of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self) -> Result<Vec<StandingOrder>, Error> {
        let rows: Vec<OrderRow> = sqlx::query_as(
            "
            select s.kind, s.name, s.fleet, s.domain, s.wish, s.version, s.ordered_at, s.ordered_by, s.reason
              from registry.standing_orders s
             order by s.name, s.kind, s.fleet
            ",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::Database)?;
        // a row of a later build that means nothing here is no reason to know of none
        Ok(rows.into_iter().filter_map(understood).collect())
    }

    /// Gives an order, or gives one anew; none if another one stands than the version that was known.
    ///
    /// # Errors
    /// [`Error::Database`], also for texts that are too long.
    pub async fn give(&self, order: &NewOrder) -> Result<Option<i64>, Error> {
        let wish = if order.fleet.is_some() { "drained" } else { "suspended" };
        let (accepted, version): (bool, i64) = sqlx::query_as(
            "
            select g.accepted, g.version
              from registry.give_order(
                kind => $1, name => $2, fleet => $3, domain => $4, wish => $5, ordered_by => $6, reason => $7,
                known_version => $8) as g
            ",
        )
        .bind(order.subject.kind())
        .bind(order.subject.name())
        .bind(order.fleet.map_or(EVERYONE, i32::from))
        .bind(order.subject.domain())
        .bind(wish)
        .bind(&order.by)
        .bind(&order.reason)
        .bind(order.known_version)
        .fetch_one(&self.pool)
        .await
        .map_err(Error::Database)?;
        Ok(accepted.then_some(version))
    }

    /// Takes back an order as it is known; false if it was changed since, or is gone.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn lift(&self, order: &StandingOrder, by: &str) -> Result<bool, Error> {
        sqlx::query_scalar("select registry.lift_order($1, $2, $3, $4, $5)")
            .bind(order.subject.kind())
            .bind(order.subject.name())
            .bind(order.fleet.map_or(EVERYONE, i32::from))
            .bind(order.version)
            .bind(by)
            .fetch_one(&self.pool)
            .await
            .map_err(Error::Database)
    }
}

fn understood(row: OrderRow) -> Option<StandingOrder> {
    let OrderRow { kind, name, fleet, domain, wish, version, ordered_at, ordered_by, reason } = row;
    let subject = match kind.as_str() {
        "domain" => Subject::Domain { domain },
        "process" => Subject::Process { domain, process: name },
        "instance" => {
            let (process, slot) = name.rsplit_once('/')?;
            Subject::Instance { domain, process: process.to_owned(), slot: slot.parse().ok()? }
        }
        _ => return None,
    };
    let wish = match wish.as_str() {
        "drained" => OrderedState::Drained,
        "suspended" => OrderedState::Suspended,
        _ => return None,
    };
    let fleet = u16::try_from(fleet).ok();
    Some(StandingOrder { subject, fleet, wish, version, at: ordered_at, by: ordered_by, reason })
}
