//! What may be done to the bus, drawn at random.

use proptest::prelude::*;

pub(super) const HOLDERS: [&str; 2] = ["w", "v"];
pub(super) const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// More than the 64 of a claim that marks the rows of its messages at once.
pub(super) const FLOOD: usize = 70;

/// One message of a batch.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub tenant: usize,
    pub priority: i16,
    pub group: Option<u8>,
    pub key: Option<u8>,
    pub delayed: bool,
    pub expires: bool,
    /// Places among the messages that its tenant sent before.
    pub awaits: Vec<usize>,
}

/// What a failure asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Retry {
    Never,
    AtOnce,
    WithBackoff,
    /// Beyond any time to live here.
    InAnHour,
}

/// Numbers of claims count from the newest of all that were ever made, so that stale ones are among them. The holder is that
/// of the first; claims of another are not his to end.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Send(Vec<Sent>),
    Flood {
        tenant: usize,
    },
    Claim {
        holder: usize,
        count: u16,
    },
    Complete {
        claims: Vec<usize>,
    },
    Fail {
        claims: Vec<(usize, Retry)>,
    },
    Release {
        claims: Vec<usize>,
    },
    Defer {
        claims: Vec<usize>,
        for_an_hour: bool,
    },
    Extend {
        claims: Vec<usize>,
    },
    HandBackUnheld {
        holder: usize,
        known: Vec<usize>,
    },
    HolderGone {
        holder: usize,
    },
    /// All but those that were extended.
    LeasesPass,
    Reclaim,
    DelaysPass,
    TimesToLivePass,
    Expire,
    Cancel {
        message: usize,
    },
    Replay {
        message: usize,
    },
    Pause(bool),
    Limit(Option<u32>),
    Aging {
        ms: u32,
    },
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        0..TENANTS.len(),
        prop_oneof![4 => Just(100), 1 => Just(0), 1 => Just(101), 1 => Just(500)],
        prop::option::weighted(0.3, 0..2_u8),
        prop::option::weighted(0.15, 0..2_u8),
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.2),
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(0..100_usize, 1..4)],
    )
        .prop_map(|(tenant, priority, group, key, delayed, expires, awaits)| Sent {
            tenant,
            priority,
            group,
            key,
            delayed,
            expires,
            awaits,
        })
}

fn retry() -> impl Strategy<Value = Retry> {
    prop_oneof![
        1 => Just(Retry::Never),
        3 => Just(Retry::AtOnce),
        1 => Just(Retry::WithBackoff),
        1 => Just(Retry::InAnHour),
    ]
}

fn claims() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => prop::collection::vec(0..8_usize, 1),
        6 => prop::collection::vec(0..12_usize, 2..10),
        // every one that was ever made, nearly
        1 => Just((0..60).collect::<Vec<usize>>()),
    ]
}

/// Mostly the same, so that many claims are its.
fn holder() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 1 => Just(1)]
}

fn working() -> impl Strategy<Value = Operation> {
    let claim = (holder(), prop_oneof![4 => 1..7_u16, 1 => Just(100)]);
    prop_oneof![
        6 => prop::collection::vec(sent(), 1..5).prop_map(Operation::Send),
        8 => claim.prop_map(|(holder, count)| Operation::Claim { holder, count }),
        5 => claims().prop_map(|claims| Operation::Complete { claims }),
        3 => prop::collection::vec((0..12_usize, retry()), 1..6).prop_map(|claims| Operation::Fail { claims }),
        2 => claims().prop_map(|claims| Operation::Release { claims }),
        1 => (claims(), any::<bool>()).prop_map(|(claims, for_an_hour)| Operation::Defer { claims, for_an_hour }),
        2 => claims().prop_map(|claims| Operation::Extend { claims }),
        2 => (0..100_usize).prop_map(|message| Operation::Cancel { message }),
        2 => (0..100_usize).prop_map(|message| Operation::Replay { message }),
    ]
}

fn passing_and_steering() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => Just(Operation::LeasesPass),
        3 => Just(Operation::Reclaim),
        3 => Just(Operation::DelaysPass),
        2 => Just(Operation::TimesToLivePass),
        2 => Just(Operation::Expire),
        1 => (holder(), prop::collection::vec(0..12_usize, 0..4))
            .prop_map(|(holder, known)| Operation::HandBackUnheld { holder, known }),
        1 => holder().prop_map(|holder| Operation::HolderGone { holder }),
        1 => (0..TENANTS.len()).prop_map(|tenant| Operation::Flood { tenant }),
        1 => prop::bool::weighted(0.3).prop_map(Operation::Pause),
        2 => prop::option::weighted(0.6, 0..5_u32).prop_map(Operation::Limit),
        1 => prop_oneof![Just(0), Just(1), Just(10_000)].prop_map(|ms| Operation::Aging { ms }),
    ]
}

pub(super) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(prop_oneof![3 => working(), 1 => passing_and_steering()], 1..40)
}
